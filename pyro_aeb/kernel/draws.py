# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a draw keeps. All sites and summaries, where that is small or the user says so; for a large
model the small sites, and of the large ones figures in place of their values: a norm a draw, and
running moments over the draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.errors import ModelError, SaveSizeWarning, listed
from pyro_aeb.model.structure import Structure, rho_name

WARNING_BYTES = 2**20
"""Bytes a draw above which a warning is given: 1000 such draws are 1 GiB."""

LARGE_DRAW = 4 * 2**20
"""Bytes above which a draw is large: 1000 such draws are 4 GiB, and three times that at the end."""

SMALL_SITE = 1024
"""The most numbers that a site may have to be kept in a large draw."""


def names_to_save(structure: Structure, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """
    Names of the sites and summaries that a draw holds.

    :param wanted: names, or None for all of them where a draw takes at most :data:`LARGE_DRAW`
        bytes, and otherwise for the learned sites and those of at most :data:`SMALL_SITE` numbers.
    :raises ModelError: if a name is none of theirs.
    :warns SaveSizeWarning: if all of them take more than :data:`WARNING_BYTES`, or are left out.
    """
    width = torch.finfo(structure.dtype).bits // 8
    sizes = {block.name: block.size for block in structure.blocks}
    sizes |= {rho_name(block.name): block.size for block in structure.sparse}
    sizes |= {name: 1 for name in structure.latent_sites}
    if wanted is not None:
        if unknown := [name for name in wanted if name not in sizes]:
            raise ModelError(
                f"save names {listed(unknown)}, which are no latent sites or summaries; there are "
                f"{listed(sorted(sizes))}"
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
    if total > LARGE_DRAW:
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        what = (
            f"so these are left out of the draws: {parts}{more}. Of them only norms and running "
            "moments are kept, and pyro.infer.Predictive would draw them from the prior; choose "
            "with save=[...], or use the weights as they come by hook_fn, as "
            "aeb.nn.PosteriorPredictive does"
        )
    else:
        what = f"the largest {parts}; choose what a draw holds with save=[...]"
    warnings.warn(
        f"all weights and summaries take {total:,} bytes a draw: 1000 draws {total * 1000:,}, and "
        f"two to three times that at the end of the run, while MCMC stacks them; {what}",
        SaveSizeWarning,
        stacklevel=6,
    )


class Moments:
    """Running means and variances of tensors over the draws, by Welford's recursion."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Takes in a draw."""
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
        """The means, by name."""
        return {name: mean.clone() for name, mean in self._mean.items()}

    def sd(self) -> dict[str, Tensor]:
        """The standard deviations over the draws (divisor count - 1, 0 for one draw), by name."""
        return {
            name: (square / max(self.count - 1, 1)).sqrt() for name, square in self._square.items()
        }

    def state(self) -> dict[str, Any]:
        """All that the next draw is added to."""
        return {"count": self.count, "mean": self._mean, "square": self._square}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from another's :meth:`state`, on a device."""

        def there(values: Mapping[str, Any]) -> dict[str, Tensor]:
            return {n: torch.as_tensor(value, device=device) for n, value in values.items()}

        self.count = int(state["count"])
        self._mean, self._square = there(state["mean"]), there(state["square"])
