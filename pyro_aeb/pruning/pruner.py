# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A :class:`~pyro_aeb.pruning.base.Pruning` at work on one model's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import Block, Structure
from pyro_aeb.pruning.base import Pruning
from pyro_aeb.pruning.selection import all_but_enough, all_but_lowest, apportion
from pyro_aeb.schedules import number_at
from pyro_aeb.validation import is_number


class Layer(NamedTuple):
    """
    A prunable site.

    :param int start: where it starts, counted from the start of the first prunable site.
    :param int stop: where it ends.
    :param int units: how many units it has; single weights are units of one.
    :param int unit: weights of a unit.
    """

    start: int
    stop: int
    units: int
    unit: int


class Pruner:
    """
    Prunes a chain of one model, or several that step together: they share the numbers of weights
    that go, and each has its own lowest scores and its own mask.

    All it does is elementwise or along the last axis, and it reads nothing back from an
    accelerator. On one core a call takes 1 to 2 ms for the sparse layers of a ResNet20 (267,000
    weights, of which 90 % go), against 4 to 6 ms that each image costs in the gradient:
    ``python -m pytest tests/benchmarks/test_pruning.py --benchmark-enable -s``.

    :param Pruning pruning: what to prune.
    :param Structure structure: of the model.
    :raises ModelError: if there is nothing to prune, or more is asked for than there is.
    """

    def __init__(self, pruning: Pruning, structure: Structure) -> None:
        self.pruning = pruning
        self._size = structure.size
        self._device = structure.device
        places = _prunable(pruning, structure)
        self._start, self._stop = places[0][0], places[-1][0] + places[-1][1].size
        self._layers = tuple(_layer(at - self._start, b, pruning.by_unit) for at, b in places)
        self._sizes = [layer.stop - layer.start for layer in self._layers]
        self._units = [layer.unit for layer in self._layers]
        self._prunable = sum(self._sizes)
        self._unit_sizes = torch.tensor(
            [layer.unit for layer in self._layers for _ in range(layer.units)]
            if pruning.by_unit
            else [],
            dtype=torch.int64,
            device=structure.device,
        )
        self._total = 0
        self._counts: tuple[int, ...] = (0,) * len(self._layers)
        self._keep: Tensor | None = None
        self._position: Tensor | None = None
        sparsity = pruning.sparsity
        known: Any = getattr(sparsity, "target", getattr(sparsity, "value", None))
        if is_number(known) and 0.0 <= float(known) <= 1.0:
            self._weights_of(float(known), "")

    def target(self, k: int) -> float:
        """
        The share of all weights that shall be zero after step k, equation (9).

        :raises ValueError: if the schedule leaves [0, 1].
        """
        return number_at("sparsity", self.pruning.sparsity, k, 0.0, 1.0, "a share in [0, 1]")

    def prune(self, state: Any, k: int, wide: Callable[[], Tensor]) -> Any:
        """
        Prunes after step k.

        :param state: the transition's ``NamedTuple``; its tensors ``position``, shape (..., D), and
            ``momentum``, if it has one (or those that its class names as ``held``), are changed in
            place.
        :param int k: the step, counted from 1.
        :param wide: gives the probability of the wide component for all sparse weights, shape
            (..., P); called only if the pruning needs it.
        :returns: the state.
        :raises ModelError: if the schedule asks for more weights than can be pruned.
        """
        self._position = state.position
        weights = state.position[..., self._start : self._stop]
        if self._keep is not None:
            self._hold(state, self._keep)
        if k % self.pruning.every == 0:
            self._set_counts(k)
            keep = self._choose(weights, wide)
            if self.pruning.freeze:
                self._keep = keep if self._keep is None else self._keep.logical_and_(keep)
                self._hold(state, self._keep)
            else:
                _zero(weights, keep)
        return state

    def zeros(self) -> Tensor:
        """
        The share of all D weights that are zero, shape (...), as of the last call of
        :meth:`prune`; NaN before the first.
        """
        if self._position is None:
            return torch.full((), torch.nan)
        position = self._position
        left = position.count_nonzero(dim=-1).to(position.dtype)
        return (self._size - left) / self._size

    def state(self) -> dict[str, Any]:
        """
        All that the next call of :meth:`prune` depends on beside its arguments, as plain values and
        a tensor of its own: ``total``, the weights to go; ``counts``, the units of each site that
        go; ``keep``, the mask of the prunable weights, or None.
        """
        keep = None if self._keep is None else self._keep.clone()
        return {"total": self._total, "counts": list(self._counts), "keep": keep}

    def load(self, state: Mapping[str, Any]) -> None:
        """
        Goes on from where another pruner of the same options and structure stood;
        :meth:`zeros` is NaN until the next :meth:`prune`.

        :param state: of :meth:`state`.
        :raises ValueError: if the state is of other sites.
        """
        counts, keep = tuple(state["counts"]), state["keep"]
        weights = self._stop - self._start
        if len(counts) != len(self._layers) or (keep is not None and keep.shape[-1] != weights):
            mask = "no mask" if keep is None else f"a mask of {keep.shape[-1]} weights"
            raise ValueError(
                f"the state is of {len(counts)} prunable sites with {mask}, expected "
                f"{len(self._layers)} sites and {weights} weights; load it with the model and the "
                "pruning that it was saved with"
            )
        self._total, self._counts = state["total"], counts
        self._keep = None if keep is None else keep.to(self._device, copy=True)
        self._position = None

    @property
    def mask(self) -> Tensor | None:
        """
        True where a weight is left, False where it is held at zero, shape (..., D); None without
        ``freeze`` and before the first pruning step.
        """
        if self._keep is None:
            return None
        mask = self._keep.new_ones(*self._keep.shape[:-1], self._size)
        mask[..., self._start : self._stop] = self._keep
        return mask

    def _hold(self, state: Any, keep: Tensor) -> None:
        for name in ("position", *getattr(state, "held", ("momentum",))):
            vector = getattr(state, name, None)
            if vector is not None:
                _zero(vector[..., self._start : self._stop], keep)

    def _set_counts(self, k: int) -> None:
        """How many weights go in all, and how many units of each layer."""
        freeze = self.pruning.freeze
        total = self._weights_of(self.target(k), f"at step {k} ")
        if total != self._total:
            kept = self._counts if freeze else (0,) * len(self._layers)
            self._counts = apportion(total, self._sizes, self._units, kept)
            self._total = total

    def _weights_of(self, share: float, when: str) -> int:
        total = round(share * self._size)
        if total <= self._prunable:
            return total
        most = math.floor(1e4 * self._prunable / self._size) / 1e4
        raise ModelError(
            f"{self.pruning!r} {when}asks for {share:.4g} of the model's {self._size} weights to "
            f"be zero, {total} weights, but its {len(self._layers)} prunable sites have only "
            f"{self._prunable}, {most:.4g} of all. Make more layers sparse (an SSGL prior, or "
            f"`sites`), or lower the sparsity to at most {most:.4g}"
        )

    def _choose(self, weights: Tensor, wide: Callable[[], Tensor]) -> Tensor:
        """True for weights that stay and False for those that go, shape (..., n)."""
        pruning = self.pruning
        probability: Sequence[Tensor | None]
        if pruning.needs_probability:
            probability = self._by_layer(wide()[..., self._start : self._stop])
        else:
            probability = [None for _ in self._layers]
        keys = [
            pruning.keys(own, rho)
            for own, rho in zip(self._by_layer(weights), probability, strict=True)
        ]
        if pruning.scope == "layer":
            stay = [all_but_lowest(own, n) for own, n in zip(keys, self._counts, strict=True)]
        else:
            together = [torch.cat(parts, -1) for parts in zip(*keys, strict=True)]
            stay = self._choose_globally(together)
        keep = torch.ones_like(weights, dtype=torch.bool)
        for part, stays in zip(self._by_layer(keep), stay, strict=True):
            part.copy_(stays.unsqueeze(-1) if pruning.by_unit else stays)
        return keep

    def _choose_globally(self, keys: list[Tensor]) -> list[Tensor]:
        if self.pruning.by_unit:
            stays = all_but_enough(keys[0], self._unit_sizes, self._total)
        else:
            stays = all_but_lowest(keys, self._total)
        return list(stays.split([layer.units for layer in self._layers], dim=-1))

    def _by_layer(self, values: Tensor) -> list[Tensor]:
        """Views of shape (..., n), or (..., units, weights of a unit)."""
        parts = [values[..., layer.start : layer.stop] for layer in self._layers]
        if not self.pruning.by_unit:
            return parts
        units = [(layer.units, layer.unit) for layer in self._layers]
        return [part.unflatten(-1, shape) for part, shape in zip(parts, units, strict=True)]


def _layer(start: int, block: Block, by_unit: bool) -> Layer:
    units = block.size
    if by_unit:
        units = block.shape[0] if block.shape else 1
    return Layer(start, start + block.size, units, block.size // units)


def _prunable(pruning: Pruning, structure: Structure) -> list[tuple[int, Block]]:
    """The sites that may be pruned, in the order of the position, with their places in it."""
    kind, at = type(pruning).__name__, 0
    places = []
    for block in structure.blocks:
        if block.transform is None and block.size:
            places.append((at, block))
        at += block.size
    sparse = [block.name for block in structure.sparse]
    if pruning.sites is None:
        patterns: tuple[str, ...] = tuple(sparse)
        if not sparse:
            largest = sorted(places, key=lambda place: -place[1].size)
            raise ModelError(
                f"{kind} has nothing to prune: the model has no SSGL site whose latents are "
                "learned. Give weights an SSGL prior and the kernel an adaptation"
                + (
                    ""
                    if pruning.needs_probability
                    else ", or name the sites to prune in `sites`, "
                    f"such as {[b.name for _, b in largest][:5]}"
                )
            )
    else:
        patterns = pruning.sites
    allowed = [(at, b) for at, b in places if not pruning.needs_probability or b.name in sparse]
    names = [block.name for _, block in allowed]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            what = "SSGL" if pruning.needs_probability else "unconstrained"
            raise ModelError(
                f"{kind}: {pattern!r} in `sites` matches no site that can be pruned; the model's "
                f"{what} sites are {names}"
            )
    chosen = [(at, b) for at, b in allowed if any(_matches(b.name, p) for p in patterns)]
    if not chosen:
        raise ModelError(f"{kind} has nothing to prune: `sites` is empty; name some of {names}")
    return chosen


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _zero(vector: Tensor, keep: Tensor) -> None:
    """Multiplies by the mask in place; adding 0 turns -0 to 0. Infinities become NaN, not 0."""
    # As bytes: multiplying by booleans takes several times as long (tests/benchmarks/test_pruning).
    vector.mul_(keep.view(torch.uint8)).add_(0.0)


class Flips:
    """
    Counts the weights that have become zero, or have ceased to be, from one draw to the next.

    :param Tensor position: where the chain starts, shape (..., D).
    """

    def __init__(self, position: Tensor) -> None:
        self.zero = position == 0.0

    def count(self, position: Tensor) -> Tensor:
        """How many since the last call, shape (...)."""
        now = position == 0.0
        flipped = torch.count_nonzero(now != self.zero, dim=-1)
        self.zero.copy_(now)
        return flipped
