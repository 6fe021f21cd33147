# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The contents of a draw: all sites and summaries, or for a large model the small ones. Of the others
a norm is recorded with every draw, and running moments over the draws.
"""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.latent_values import AnyLatents
from pyro_aeb.errors import ModelError, SaveSizeWarning, shorten
from pyro_aeb.model.structure import Structure, gamma_name, norm_name, rho_name
from pyro_aeb.storage.recorder import Recorder

WARNING_BYTES = 2**20
"""Bytes of a draw above which a warning is given: 1000 such draws are 1 GiB."""

LARGE_DRAW = 4 * 2**20
"""Bytes above which a draw is large: 1000 are 4 GiB, and Pyro stacks them in three times that."""

SMALL_SITE = 1024
"""The most numbers of a site that a large draw holds."""


def names_to_save(
    structure: Structure, wanted: Sequence[str] | None, gammas: bool = False
) -> tuple[str, ...]:
    """
    Return the names of the sites and summaries that a draw holds.

    :param wanted: names, or None for all where a draw takes at most :data:`LARGE_DRAW` bytes, and
        otherwise for those of at most :data:`SMALL_SITE` numbers, learned sites included.
    :param bool gammas: whether gammas are drawn.
    :raises ModelError: if a name is unknown.
    :warns SaveSizeWarning: by default, if all of them take more than :data:`WARNING_BYTES`.
    """
    width = torch.finfo(structure.dtype).bits // 8
    sizes = {block.name: block.size for block in structure.blocks}
    sizes |= {rho_name(block.name): block.size for block in structure.sparse}
    if gammas:
        sizes |= {gamma_name(block.name): block.size for block in structure.sparse}
    sizes |= {name: 1 for name in structure.latent_sites}
    if wanted is not None:
        if unknown := [name for name in wanted if name not in sizes]:
            raise ModelError(
                f"save names {shorten(unknown)}, which are no latent sites or summaries; there are "
                f"{shorten(sorted(sizes))}"
            )
        return tuple(wanted)
    total = width * sum(sizes.values())
    if total > WARNING_BYTES:
        _warn(sizes, width, total)
    if total <= LARGE_DRAW:
        return tuple(sizes)
    return tuple(name for name, size in sizes.items() if size <= SMALL_SITE)


def _warn(sizes: Mapping[str, int], width: int, total: int) -> None:
    largest = sorted(sizes, key=lambda name: -sizes[name])
    if total > LARGE_DRAW:
        largest = [name for name in largest if sizes[name] > SMALL_SITE]
    parts = ", ".join(f"{name} {width * sizes[name]:,}" for name in largest[:3])
    advice = f"the largest {parts}; choose what a draw holds with save=[...]"
    if total > LARGE_DRAW:
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        advice = (
            f"so these are left out of the draws: {parts}{more}. Of them only norms and running "
            "moments are kept, and pyro.infer.Predictive would draw them from the prior; choose "
            "with save=[...], or use the weights of every draw by hook_fn, as "
            "aeb.nn.PosteriorPredictive does"
        )
    warnings.warn(
        f"all weights and summaries take {total:,} bytes a draw: 1000 draws {total * 1000:,}, and "
        f"two to three times that at the end of the run, while MCMC stacks them; {advice}",
        SaveSizeWarning,
        stacklevel=6,
    )


class Recording:
    """
    Records the draws of a chain, and running moments of the sites that a draw leaves out.

    :param saved: names of the sites and summaries that a draw holds.
    :param torch.Size shape: (C,) of C chains that step together, () of one.
    """

    def __init__(
        self, structure: Structure, saved: Collection[str], shape: torch.Size, recorder: Recorder
    ) -> None:
        self.moments = Moments()
        self.recorder = recorder
        self._saved = frozenset(saved)  # of many names
        self._last: dict[str, tuple[float | bool, Tensor]] = {}  # numbers change rarely
        self._shape = shape
        self._weights = [block.name for block in structure.blocks if block.name not in self._saved]
        summaries = [n(block.name) for n in (rho_name, gamma_name) for block in structure.sparse]
        self._summaries = [name for name in summaries if name in self._saved]

    def select(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the sites that a draw holds."""
        return {name: value.clone() for name, value in values.items() if name in self._saved}

    def add(
        self,
        number: int,
        draw: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor | float | bool],
    ) -> None:
        """
        Record a draw.

        :param int number: of the recorded draws, counted from 0.
        :param statistics: one number a chain each, or one for all chains.
        """
        left_out = {name: value for name, value in values.items() if name not in self._saved}
        if left_out:
            self.moments.add(left_out)
            weights = {name: left_out[name].reshape(*self._shape, -1) for name in self._weights}
            norms = {name: value.norm(dim=-1) for name, value in weights.items()}
            statistics = {**statistics, **{norm_name(name): norms[name] for name in norms}}
        record = {
            "posterior": draw,
            "sample_stats": {name: self._number(name, n) for name, n in statistics.items()},
            "adaptation": {name: values[name] for name in self._summaries if name in values},
        }
        self.recorder.add(number, record)

    def _number(self, name: str, value: Tensor | float | bool) -> Tensor:
        """Return a statistic as a tensor with one number a chain."""
        if isinstance(value, Tensor):
            return value if value.shape == self._shape else value.expand(self._shape)
        last = self._last.get(name)
        if last is None or last[0] != value:
            tensor = torch.as_tensor(value)
            last = value, tensor.expand(self._shape) if self._shape else tensor
            self._last[name] = last
        return last[1]


class Moments:
    """Running means and variances of tensors over the draws, by Welford's recursion."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add a draw."""
        self.count += 1
        for name, value in values.items():
            if name not in self._mean:
                self._mean[name] = torch.zeros_like(value)
                self._square[name] = torch.zeros_like(value)
            mean = self._mean[name]
            difference = value - mean
            mean.add_(difference, alpha=1.0 / self.count)
            self._square[name].addcmul_(difference, value - mean)

    def mean(self) -> dict[str, Tensor]:
        """Return the means, by name."""
        return {name: mean.clone() for name, mean in self._mean.items()}

    def sd(self) -> dict[str, Tensor]:
        """Return the standard deviations (divisor count - 1; 0 for one draw), by name."""
        return {
            name: (square / max(self.count - 1, 1)).sqrt() for name, square in self._square.items()
        }

    def state(self) -> dict[str, Any]:
        """Return the state, for :meth:`load`."""
        return {"count": self.count, "mean": self._mean, "square": self._square}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore another's :meth:`state` on a device."""

        def move_to_device(values: Mapping[str, Any]) -> dict[str, Tensor]:
            return {n: torch.as_tensor(value, device=device) for n, value in values.items()}

        self.count = int(state["count"])
        self._mean = move_to_device(state["mean"])
        self._square = move_to_device(state["square"])


def dims_of(structure: Structure) -> dict[str, list[str | None]]:
    """Return the plate of every axis of every site and summary, None where there is none."""
    dims = {name: list(plates) for name, plates in structure.dims.items()}
    own = {
        name: dims[block.name]
        for block in structure.sparse
        for name in (rho_name(block.name), gamma_name(block.name))
    }
    return {**dims, **own}


def kinds_of_summaries(structure: Structure, are_sampled: bool) -> dict[str, str]:
    """Return the kinds of all summaries, by name, as traces state them."""
    names = [block.name for block in structure.sparse]
    if not are_sampled:
        return dict.fromkeys(map(rho_name, names), "stochastic approximation")
    probabilities = dict.fromkeys(map(rho_name, names), "probability")
    return {**probabilities, **dict.fromkeys(map(gamma_name, names), "draw")}


def group_sizes(structure: Structure) -> dict[str, str]:
    """Return the sizes of groups of weights with one gamma, by site, as a setting of the run."""
    sizes = {block.name: block.group for block in structure.sparse if block.group > 1}
    return {"groups": json.dumps(sizes)} if sizes else {}


def progress_figures(
    statistics: Mapping[str, Tensor | float],
    ssgl: AnyLatents | None,
    steps_per_second: float,
) -> OrderedDict[str, str]:
    """
    Return figures for a progress bar.

    :param statistics: of the last draw, empty before the first.
    :param ssgl: the latents of SSGL sites, None where none are learned.
    """
    figures = OrderedDict[str, str]()
    if "potential" in statistics:
        figures["potential"] = f"{_mean(statistics['potential']):.3g}"
    if "sparsity" in statistics:
        figures["sparsity"] = f"{_mean(statistics['sparsity']):.3f}"
    if ssgl is not None and ssgl.sigma.shape[-1] == 1:
        figures["sigma"] = f"{_mean(ssgl.sigma):.3g}"
    figures["steps/s"] = f"{steps_per_second:.0f}"
    return figures


def _mean(value: Tensor | float) -> float:
    return float(torch.as_tensor(value).mean())
