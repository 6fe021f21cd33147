# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How many of each layer, and which: the arithmetic of pruning, on plain numbers and tensors.

:func:`apportion` says how many weights of each layer go, :func:`all_but_lowest` and
:func:`all_but_enough` which. Counts are exact, whatever the ties; nothing is sorted in full, and on
an accelerator nothing is waited for. What the ways taken on the CPU save is measured by
``python -m pytest tests/benchmarks/test_pruning.py --benchmark-enable -s``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLED = 2**11
"""From this length on, :func:`_kth_lowest` looks at a sample first."""

STRIDE = 31
"""Of so many values one is in the sample; a prime, so that it falls on all places of a kernel."""

SAMPLE = 2**15
"""About the most values in a sample."""


def apportion(
    total: int, sizes: Sequence[int], units: Sequence[int], at_least: Sequence[int]
) -> tuple[int, ...]:
    r"""
    How many units of each layer make up ``total`` weights, equation (10): a layer of
    :math:`p_l` weights gives its share :math:`\mathrm{total} \cdot p_l / \sum_l p_l`, rounded down
    or up to whole units.

    The layers that are rounded up are those whose share is the first to fill the next unit as the
    total grows, as many as bring the sum nearest to the total. Where all units are single weights
    the sum is the total itself, and counts that are handed back as ``at_least`` for a larger total
    never exceed it: a mask can grow with the total and stay exact.

    :param int total: weights asked for, at most the sum of ``sizes``.
    :param sizes: weights of each layer.
    :param units: weights of a unit of each layer, which divide its size; 1 for single weights.
    :param at_least: units of each layer that are in any case taken.
    """
    whole = sum(sizes)
    counts = [
        max(total * size // (whole * unit), least)
        for size, unit, least in zip(sizes, units, at_least, strict=True)
    ]
    taken = sum(count * unit for count, unit in zip(counts, units, strict=True))
    # In integers: layer i's share is above its count.
    short = [i for i, n in enumerate(counts) if n * units[i] * whole < total * sizes[i]]
    for i in sorted(short, key=lambda i: (counts[i] + 1) * units[i] / sizes[i]):
        if 2 * (total - taken) >= units[i]:
            counts[i] += 1
            taken += units[i]
    return tuple(counts)


def all_but_lowest(keys: Sequence[Tensor], count: int) -> Tensor:
    """
    True for all but exactly ``count`` entries: those with the lowest first key; among entries that
    tie there, with the lowest second key, and so on; among the last ties, any. On the CPU every row
    is what it would be alone, ties included.

    :param keys: scores, each of shape (..., n), lowest first to go; no NaN among them.
    :param int count: how many entries go, from 0 to n.
    :returns: booleans of shape (..., n).
    """
    first = keys[0]
    if count == 0:
        return torch.ones_like(first, dtype=torch.bool)
    if count == first.shape[-1]:
        return torch.zeros_like(first, dtype=torch.bool)
    numpy_does = first.dtype in (torch.float32, torch.float64)
    if first.device.type == "cpu" and numpy_does:  # 3 to 6 times as quick, from 30,000 weights on
        rows = zip(*(key.reshape(-1, first.shape[-1]).numpy() for key in keys), strict=True)
        stays = np.empty((first.numel() // first.shape[-1], first.shape[-1]), dtype=bool)
        for row, own in zip(stays, rows, strict=True):
            np.logical_not(_lowest(own, count, row), out=row)
        return torch.from_numpy(stays).view(first.shape)
    return _all_but_lowest_on_device(keys, count)


def all_but_enough(scores: Tensor, sizes: Tensor, total: int) -> Tensor:
    """
    True for all but the fewest entries that, taken from the lowest score up, have ``total`` weights
    between them; of entries that tie, the first go first.

    :param Tensor scores: shape (..., n).
    :param Tensor sizes: weights of each entry, shape (n,).
    :param int total: weights asked for.
    :returns: booleans of shape (..., n).
    """
    order = scores.argsort(dim=-1, stable=True)
    own = sizes[order]
    before = own.cumsum(-1) - own
    return torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= total)


def _lowest(keys: Sequence[np.ndarray], count: int, out: np.ndarray | None = None) -> np.ndarray:
    """True for exactly the ``count`` lowest entries, 0 < count <= n; in ``out``, if there is."""
    first, rest = keys[0], keys[1:]
    bound = _kth_lowest(first, count)
    marked = np.less_equal(first, bound, out=out)
    surplus = int(np.count_nonzero(marked)) - count
    if surplus > 0:
        ties = np.flatnonzero(first == bound)
        wanted = len(ties) - surplus
        marked[ties] = (
            _lowest([key[ties] for key in rest], wanted) if rest else np.arange(len(ties)) < wanted
        )
    return marked


def _kth_lowest(values: np.ndarray, count: int) -> np.floating | float:
    """
    The ``count``-th lowest value, by the method of Floyd and Rivest ("Expected time bounds for
    selection", 1975): the quantiles of a sample bracket it, and only what lies between them is
    looked at again. For 200,000 values that takes a fifth of the time of partitioning them all.
    """
    size = len(values)
    if size >= SAMPLED:
        floor, ceiling = _bracket(_sample(values), count / size)
        above, below = values > floor, values < ceiling
        up_to_floor = size - int(np.count_nonzero(above))
        below_ceiling = int(np.count_nonzero(below))
        if up_to_floor < count <= below_ceiling:
            # By their places, which is quicker than to pick by booleans.
            values = values[np.flatnonzero(np.logical_and(above, below, out=below))]
            count -= up_to_floor
            if len(values) <= size // 2:  # or the sample told little, and the next may tell no more
                return _kth_lowest(values, count)
        elif np.count_nonzero(values < floor) < count <= up_to_floor:
            return floor
        elif below_ceiling < count <= np.count_nonzero(values <= ceiling):
            return ceiling
    # Two ranks at once: numpy finds a single one by a vectorized method that takes 5 to 14
    # times as long where many values are equal, such as weights held at zero.
    ranks = (count - 1, min(count, len(values) - 1))
    return np.partition(values, ranks)[count - 1]


def _sample(values: Any) -> Any:
    """A view of some of them, evenly spaced."""
    return values[:: max(len(values) // SAMPLE, STRIDE) | 1]


def _bracket(sample: np.ndarray, share: float) -> tuple[np.floating | float, np.floating | float]:
    """Two values between which the quantile of that share is, but for one case in some hundred."""
    size = len(sample)
    rank, spread = int(share * size), 1 + math.ceil(3 * math.sqrt(size * share * (1 - share)))
    low, high = max(rank - spread, 0), min(rank + spread, size - 1)
    sample = np.partition(sample, (low, high))
    return sample[low] if low else -np.inf, sample[high] if high < size - 1 else np.inf


def _all_but_lowest_on_device(keys: Sequence[Tensor], count: int) -> Tensor:
    """:func:`all_but_lowest` for 0 < count < n without waiting for a device."""
    score = keys[0]
    for key in keys[1:]:
        # What is below the bound goes, what is above stays, and the next key settles the ties.
        bound = score.kthvalue(count, dim=-1, keepdim=True).values
        key = key.masked_fill(score < bound, -math.inf)
        score = key.masked_fill(score > bound, math.inf)
    index = score.topk(count, dim=-1, largest=False, sorted=False).indices
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, index, False)
