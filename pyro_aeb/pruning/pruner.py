# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Apply a :class:`~pyro_aeb.pruning.base.Pruning` to the weights of one model."""

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

    :param int start: of its weights, counted from the start of the first prunable site.
    :param int units: number of its units; single weights are units of one.
    :param int unit: weights of a unit.
    """

    start: int
    stop: int
    units: int
    unit: int


class Pruner:
    """
    Prune a chain of one model, or several that step together: they share the number of pruned
    weights, and each has a selection and a mask of its own.

    All operations are elementwise or along the last axis, and none waits for an accelerator. On one
    core a call takes 1 to 2 ms for the sparse layers of a ResNet20 (267,000 weights, 90 % pruned),
    where the gradient of each image takes 4 to 6 ms:
    ``python -m pytest tests/benchmarks/test_pruning.py --benchmark-enable -s``.

    :raises ModelError: if no site can be pruned, or fewer weights than the sparsity asks for.
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
        if pruning.by_unit:
            count = torch.tensor([layer.units for layer in self._layers])
            unit_sizes = torch.tensor(self._units).repeat_interleave(count)
            self._unit_sizes = unit_sizes.to(structure.device)
        self._total = 0
        self._counts: tuple[int, ...] = (0,) * len(self._layers)
        self._keep: Tensor | None = None
        self._position: Tensor | None = None
        self.zero: Tensor | None = None  # the weights at the last call of flips()
        sparsity = pruning.sparsity
        largest: Any = getattr(sparsity, "target", getattr(sparsity, "value", None))
        if is_number(largest) and 0.0 <= float(largest) <= 1.0:
            self._check_total(float(largest), "")

    def target(self, k: int) -> float:
        """
        Return the share of all weights to set to zero after step k, equation (9).

        :raises ValueError: if the schedule leaves [0, 1].
        """
        return number_at("sparsity", self.pruning.sparsity, k, 0.0, 1.0, "a share in [0, 1]")

    def prune(self, state: Any, k: int, wide: Callable[[], Tensor]) -> Any:
        """
        Prune after step k.

        :param state: of the transition, a ``NamedTuple``. Its ``position``, shape (..., D), and its
            ``momentum``, if it has one (or the fields in ``held`` of its class), are changed in
            place.
        :param int k: the step, from 1.
        :param wide: returns the probability of the wide component for all sparse weights, shape
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
            keep = self._select(weights, wide)
            if self.pruning.freeze:
                self._keep = keep if self._keep is None else self._keep.logical_and_(keep)
                self._hold(state, self._keep)
            else:
                _zero(weights, keep)
        return state

    def zeros(self) -> Tensor:
        """
        Return the share of all D weights that were zero after the last call of :meth:`prune`, shape
        (...); NaN before the first.
        """
        if self._position is None:
            return torch.full((), torch.nan)
        position = self._position
        left = position.count_nonzero(dim=-1).to(position.dtype)
        return (self._size - left) / self._size

    def flips(self, position: Tensor) -> Tensor:
        """
        Count the weights that became zero, or ceased to be, since the last call.

        :param Tensor position: shape (..., D).
        :returns: shape (...); 0 at the first call.
        """
        zero = position == 0.0
        previous = zero if self.zero is None else self.zero
        self.zero = zero
        return torch.count_nonzero(zero != previous, dim=-1)

    def state(self) -> dict[str, Any]:
        """
        Return all that the next :meth:`prune` depends on beside its arguments: ``total``, the
        number of pruned weights; ``counts``, the pruned units of each site; ``keep``, a copy of the
        mask of the prunable weights, or None.
        """
        keep = None if self._keep is None else self._keep.clone()
        return {"total": self._total, "counts": list(self._counts), "keep": keep}

    def load(self, state: Mapping[str, Any]) -> None:
        """
        Restore the state of another pruner of the same options and structure; :meth:`zeros` is NaN
        until the next :meth:`prune`.

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
        False where a weight is held at zero, True elsewhere, shape (..., D); None without
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
        """Set the number of pruned weights, and that of the pruned units of each layer."""
        total = self._check_total(self.target(k), f"at step {k} ")
        if total != self._total:
            least = self._counts if self.pruning.freeze else (0,) * len(self._layers)
            self._counts = apportion(total, self._sizes, self._units, least)
            self._total = total

    def _check_total(self, share: float, when: str) -> int:
        """Return the number of weights in a share of all."""
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

    def _select(self, weights: Tensor, wide: Callable[[], Tensor]) -> Tensor:
        """Return True for weights to keep and False for weights to prune, shape (..., n)."""
        pruning, layers = self.pruning, self._by_layer(weights)
        probability: Sequence[Tensor | None] = [None for _ in layers]
        if pruning.needs_probability:
            probability = self._by_layer(wide()[..., self._start : self._stop])
        keys = [pruning.keys(*layer) for layer in zip(layers, probability, strict=True)]
        if pruning.scope == "layer":
            kept = [all_but_lowest(layer, n) for layer, n in zip(keys, self._counts, strict=True)]
        else:
            joined = [torch.cat(layers, -1) for layers in zip(*keys, strict=True)]
            kept = self._select_globally(joined)
        keep = torch.ones_like(weights, dtype=torch.bool)
        for part, units in zip(self._by_layer(keep), kept, strict=True):
            part.copy_(units.unsqueeze(-1) if pruning.by_unit else units)
        return keep

    def _select_globally(self, keys: list[Tensor]) -> list[Tensor]:
        units = [layer.units for layer in self._layers]
        if self.pruning.by_unit:
            kept = all_but_enough(keys[0], self._unit_sizes, self._total)
        else:
            kept = all_but_lowest(keys, self._total)
        return list(kept.split(units, dim=-1))

    def _by_layer(self, values: Tensor) -> list[Tensor]:
        """Return views of shape (..., n), or (..., units, weights of a unit), one a layer."""
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
    """Return the prunable sites in the order of the position, each with its start."""
    kind, start = type(pruning).__name__, 0
    sparse = [block.name for block in structure.sparse]
    allowed = []
    for block in structure.blocks:
        learned = block.name in sparse or not pruning.needs_probability
        if block.transform is None and block.size and learned:
            allowed.append((start, block))
        start += block.size
    names = [block.name for _, block in allowed]
    patterns = tuple(sparse) if pruning.sites is None else pruning.sites
    if pruning.sites is None and not sparse:
        raise ModelError(
            f"{kind} has nothing to prune: the model has no SSGL site whose latents are learned. "
            "Give weights an SSGL prior and the kernel an adaptation"
            + _suggest([block for _, block in allowed])
        )
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            required = "SSGL" if pruning.needs_probability else "unconstrained"
            raise ModelError(
                f"{kind}: {pattern!r} in `sites` matches no site that can be pruned; the model's "
                f"{required} sites are {names}"
            )
    chosen = [(at, b) for at, b in allowed if any(_matches(b.name, p) for p in patterns)]
    if not chosen:
        raise ModelError(f"{kind} has nothing to prune: `sites` is empty; name some of {names}")
    return chosen


def _suggest(blocks: list[Block]) -> str:
    largest = [block.name for block in sorted(blocks, key=lambda block: -block.size)][:5]
    return f", or name the sites to prune in `sites`, such as {largest}" if largest else ""


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _zero(vector: Tensor, keep: Tensor) -> None:
    """Multiply by the mask in place; adding 0 turns -0 to 0. Infinities become NaN, not 0."""
    # As bytes: multiplying by booleans takes several times as long (tests/benchmarks/test_pruning).
    vector.mul_(keep.view(torch.uint8)).add_(0.0)
