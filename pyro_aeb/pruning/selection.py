# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Count and select the weights to prune, on plain numbers and tensors.

:func:`apportion` computes how many weights of each layer are pruned, :func:`all_but_lowest` and
:func:`all_but_enough` select them. Counts are exact, whatever the ties; nothing is sorted in full,
and nothing waits for an accelerator. ``python -m pytest tests/benchmarks/test_pruning.py
--benchmark-enable -s`` measures the gain of the ways taken on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLED = 2**11
"""Length from which on :func:`_kth_lowest` takes a sample first."""

STRIDE = 31
"""Smallest stride of a sample; a prime, so that it covers all places of a kernel."""

SAMPLE = 2**15
"""Approximate largest size of a sample."""


def apportion(
    total: int, sizes: Sequence[int], units: Sequence[int], at_least: Sequence[int]
) -> tuple[int, ...]:
    r"""
    Return the number of units of each layer that make up ``total`` weights, equation (10): a layer
    of :math:`p_l` weights gives its share :math:`\mathrm{total} \cdot p_l / \sum_l p_l`, rounded
    down or up to whole units.

    Those layers are rounded up whose share is the first to fill the next unit as the total grows,
    as many as bring the sum nearest to the total. If all units are single weights, the sum is the
    total itself, and counts given as ``at_least`` for a larger total never exceed it: a mask can
    grow with the total and stay exact.

    :param int total: number of weights, at most the sum of ``sizes``.
    :param units: weights of a unit of each layer, which divide its size; 1 for single weights.
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
    Return True for all but exactly ``count`` entries: those of the lowest first key; among ties,
    those of the lowest second key, and so on; among the last ties, any. On the CPU every row is
    independent of the others, ties included.

    :param keys: scores, each of shape (..., n), without NaN.
    :param int count: number of entries that are False, from 0 to n.
    :returns: booleans of shape (..., n).
    """
    first = keys[0]
    if count == 0:
        return torch.ones_like(first, dtype=torch.bool)
    if count == first.shape[-1]:
        return torch.zeros_like(first, dtype=torch.bool)
    numpy_does = first.dtype in (torch.float32, torch.float64)
    if first.device.type == "cpu" and numpy_does:  # 3 to 6 times as fast, from 30,000 weights on
        rows = zip(*(key.reshape(-1, first.shape[-1]).numpy() for key in keys), strict=True)
        kept = np.empty((first.numel() // first.shape[-1], first.shape[-1]), dtype=bool)
        for out, row in zip(kept, rows, strict=True):
            np.logical_not(_lowest(row, count, out), out=out)
        return torch.from_numpy(kept).view(first.shape)
    return _all_but_lowest_on_device(keys, count)


def all_but_enough(scores: Tensor, sizes: Tensor, total: int) -> Tensor:
    """
    Return True for all but the fewest entries that, taken from the lowest score up, have ``total``
    weights between them; among ties, the first entries are taken first.

    :param Tensor scores: shape (..., n).
    :param Tensor sizes: weights of each entry, shape (n,).
    :returns: booleans of shape (..., n).
    """
    order = scores.argsort(dim=-1, stable=True)
    sorted_sizes = sizes[order]
    before = sorted_sizes.cumsum(-1) - sorted_sizes
    return torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= total)


def _lowest(keys: Sequence[np.ndarray], count: int, out: np.ndarray | None = None) -> np.ndarray:
    """Return True for exactly the ``count`` lowest entries, 0 < count <= n, in ``out`` if given."""
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
    Return the ``count``-th lowest value by the method of Floyd and Rivest ("Expected time bounds
    for selection", 1975): quantiles of a sample bracket it, and only the values between them are
    searched. For 200,000 values that takes a fifth of the time of ``np.partition``.
    """
    size = len(values)
    if size >= SAMPLED:
        floor, ceiling = _bracket(_sample(values), count / size)
        above, below = values > floor, values < ceiling
        up_to_floor = size - int(np.count_nonzero(above))
        below_ceiling = int(np.count_nonzero(below))
        if up_to_floor < count <= below_ceiling:
            # By index, which is faster than by booleans.
            values = values[np.flatnonzero(np.logical_and(above, below, out=below))]
            count -= up_to_floor
            if len(values) <= size // 2:  # else another sample may exclude no more
                return _kth_lowest(values, count)
        elif np.count_nonzero(values < floor) < count <= up_to_floor:
            return floor
        elif below_ceiling < count <= np.count_nonzero(values <= ceiling):
            return ceiling
    # Two ranks at once: for a single one numpy uses a vectorized method that takes 5 to 14 times as
    # long where many values are equal, such as weights held at zero.
    ranks = (count - 1, min(count, len(values) - 1))
    return np.partition(values, ranks)[count - 1]


def _sample(values: Any) -> Any:
    """Return a view of evenly spaced values."""
    return values[:: max(len(values) // SAMPLE, STRIDE) | 1]


def _bracket(sample: np.ndarray, share: float) -> tuple[np.floating | float, np.floating | float]:
    """Return two values that enclose a quantile of all values, in all but about 1 % of cases."""
    size = len(sample)
    rank, spread = int(share * size), 1 + math.ceil(3 * math.sqrt(size * share * (1 - share)))
    low, high = max(rank - spread, 0), min(rank + spread, size - 1)
    sample = np.partition(sample, (low, high))
    return sample[low] if low else -np.inf, sample[high] if high < size - 1 else np.inf


def _all_but_lowest_on_device(keys: Sequence[Tensor], count: int) -> Tensor:
    """Compute :func:`all_but_lowest` for 0 < count < n without waiting for a device."""
    score = keys[0]
    for key in keys[1:]:
        # Entries below the bound are pruned, entries above kept, and the next key settles the ties.
        bound = score.kthvalue(count, dim=-1, keepdim=True).values
        key = key.masked_fill(score < bound, -math.inf)
        score = key.masked_fill(score > bound, math.inf)
    index = score.topk(count, dim=-1, largest=False, sorted=False).indices
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, index, False)
