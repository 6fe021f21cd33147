# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sums over the segments of a vector that share a parameter, and the way back.

A few segments are summed one by one. For many, the vector is cut into tiles of :data:`TILE`
numbers. Tiles inside one segment are summed as tiles; only the numbers of tiles that a boundary
runs through are summed one by one. The number of operations is then the same for any number of
segments, and the order of summation never changes from run to run. What adds up to a parameter's
sum is a row of a rectangle, or where the rows would be too uneven, several rows, whose sums are
added likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

TILE = 256
"""Numbers in a tile."""

FEW = 4
"""The most segments that are summed one by one."""

WIDTH = 8
"""Numbers in a row where the parameters' rows would be too uneven."""

PADDING = 4
"""How much larger than its numbers a rectangle with a row for each parameter may be."""


@dataclass(frozen=True)
class Segments:
    """
    The consecutive segments of a vector of P numbers, by the parameter that they share.

    :param tuple sizes: the length of each segment; their sum is P.
    """

    sizes: tuple[int, ...]
    index: tuple[int, ...]
    count: int
    device: torch.device = torch.device("cpu")
    _tiles: _Tiles | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        many = self.count > 1 and len(self.sizes) > FEW
        object.__setattr__(self, "_tiles", _Tiles.of(self) if many else None)

    def spread(self, values: Tensor) -> Tensor:
        """Spread one value a parameter, (..., count), to a shape that broadcasts with (..., P)."""
        if self.count == 1:
            return values
        if self._tiles is None:
            each = values.split(1, dim=-1)
            runs = [each[g].expand(*values.shape[:-1], n) for g, n in self._runs]
            return torch.cat(runs, dim=-1)
        tiles = self._tiles
        spread = values.index_select(-1, tiles.first).repeat_interleave(TILE, dim=-1)
        spread = spread[..., : sum(self.sizes)]
        # Not in place: torch's compiler may read the view before it is written.
        return spread.index_copy(-1, tiles.loose, values.index_select(-1, tiles.loose_group))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the weights of each parameter, shape (..., P) to (..., count)."""
        if self.count == 1:
            return values.sum(-1, keepdim=True)
        if self._tiles is None:
            totals: dict[int, Tensor] = {}
            for group, part in zip(self.index, values.split(self.sizes, dim=-1), strict=True):
                total = part.sum(-1)
                totals[group] = totals[group] + total if group in totals else total
            return torch.stack([totals[group] for group in range(self.count)], dim=-1)
        tiles = self._tiles
        zero = values.new_zeros(*values.shape[:-1], 1)
        parts = [values.index_select(-1, tiles.loose)]
        if values.shape[-1] >= TILE:
            parts.insert(0, values.unfold(-1, TILE, TILE).sum(-1))
        for members, rows in zip(tiles.members, tiles.rows, strict=True):
            numbers = torch.cat([*parts, zero], dim=-1).index_select(-1, members)
            parts = [numbers.unflatten(-1, (rows, -1)).sum(-1)]
        return parts[0]

    def lengths(self) -> list[float]:
        """Return the number of weights of each parameter."""
        lengths = [0.0] * self.count
        for group, size in self._runs:
            lengths[group] += size
        return lengths

    @property
    def _runs(self) -> list[tuple[int, int]]:
        return list(zip(self.index, self.sizes, strict=True))


class Members:
    """
    The weights of a vector of P numbers by the parameter that they share, in any order.

    :param Tensor index: the parameter of each weight, shape (P,).
    :param int count: the number of parameters.
    """

    def __init__(self, index: Tensor, count: int) -> None:
        self.count = count
        self._index = index
        self._order = torch.argsort(index, stable=True)
        sizes = torch.bincount(index, minlength=count).tolist()
        self._sorted = Segments(tuple(sizes), tuple(range(count)), count, index.device)

    def spread(self, values: Tensor) -> Tensor:
        """Spread one value a parameter, (..., count), to shape (..., P)."""
        return values.index_select(-1, self._index)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the weights of each parameter, shape (..., P) to (..., count)."""
        return self._sorted.sum(values.index_select(-1, self._order))

    def lengths(self) -> list[float]:
        """Return the number of weights of each parameter."""
        return self._sorted.lengths()


def find_segments(
    owners: Sequence[int | Tensor], sizes: Sequence[int], count: int, device: torch.device
) -> Segments | Members:
    """
    Return the segments of a vector of blocks, by the parameters that their weights share.

    :param owners: the parameter of each block, or a tensor of that of each of its weights.
    :param sizes: the number of weights of each block.
    :param int count: the number of parameters.
    """
    if not any(isinstance(owner, Tensor) for owner in owners):
        return Segments(tuple(sizes), tuple(int(owner) for owner in owners), count, device)
    parts = [
        torch.as_tensor(owner, device=device).reshape(-1).expand(size)
        for owner, size in zip(owners, sizes, strict=True)
    ]
    members = torch.cat(parts)
    runs, lengths = torch.unique_consecutive(members, return_counts=True)
    if len(runs) > count + len(sizes):
        return Members(members, count)
    index, rest = runs.tolist(), set(range(count)) - set(runs.tolist())
    return Segments((*lengths.tolist(), *(0 for _ in rest)), (*index, *sorted(rest)), count, device)


@dataclass(frozen=True)
class _Tiles:
    """
    The tiles of a vector of P numbers, the last of which may be short.

    :param Tensor first: the parameter of the first number of every tile.
    :param Tensor loose: the indices of the numbers in short tiles and tiles of several parameters.
    :param members: which of (the full tiles, the loose numbers, a zero) add up to the sum of each
        row, a flat rectangle padded with the zero; then which of (these sums, a zero) add up to
        that of each row of the next rectangle. The last has a row for every parameter.
    :param rows: the number of rows of each rectangle.
    """

    first: Tensor
    loose: Tensor
    loose_group: Tensor
    members: tuple[Tensor, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, groups: Segments) -> _Tiles:
        size = sum(groups.sizes)
        group = torch.repeat_interleave(torch.tensor(groups.index), torch.tensor(groups.sizes))
        full = group[: size // TILE * TILE].reshape(-1, TILE)
        inside = (full == full[:, :1]).all(1)
        whole = inside.nonzero().flatten()
        loose = torch.ones(size, dtype=torch.bool)
        loose[: full.numel()] = ~inside.repeat_interleave(TILE)
        places = loose.nonzero().flatten()
        summed = torch.cat([whole, len(full) + torch.arange(len(places))])
        owner, order = torch.cat([full[whole, 0], group[places]]).sort(stable=True)
        lengths = torch.bincount(owner, minlength=groups.count)
        members, zero = summed[order], len(full) + len(places)
        rectangles: list[Tensor] = []
        rows: list[int] = []
        while not rows or rows[-1] > groups.count:
            rectangle, lengths = _rectangle(members, lengths, zero)
            rectangles.append(rectangle.to(groups.device))
            rows.append(zero := int(lengths.sum()))
            members = torch.arange(zero)
        first, loose, of_loose = (
            part.contiguous().to(groups.device) for part in (group[::TILE], places, group[places])
        )
        return cls(first, loose, of_loose, tuple(rectangles), tuple(rows))


def _rectangle(members: Tensor, lengths: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    """
    Lay out members in rows, flat, padded with the zero: a row for each group, or rows of
    :data:`WIDTH` where that would be too much padding.

    :param members: of all groups, one after the other.
    :param lengths: the number of members of each group.
    :returns: the rectangle, and the number of rows of each group.
    """
    width = max(int(lengths.max()), 1)
    if len(lengths) * width > PADDING * len(members):
        width = min(width, WIDTH)
    rows = torch.div(lengths + width - 1, width, rounding_mode="floor").clamp(min=1)
    starts = width * (rows.cumsum(0) - rows) - (lengths.cumsum(0) - lengths)
    rectangle = torch.full((int(rows.sum()) * width,), zero)
    rectangle[torch.arange(len(members)) + starts.repeat_interleave(lengths)] = members
    return rectangle, rows


class WeightGroups:
    """
    The groups of consecutive weights that share a gamma, under a group spike-and-slab prior.

    :param parts: length and group size of each part of the vector; 1 is a weight of its own.
    """

    def __init__(self, parts: Sequence[tuple[int, int]]) -> None:
        self._lengths: list[int] = []
        self._groups: list[int] = []
        for length, group in parts:
            if self._groups and self._groups[-1] == group:  # neighbours are one part
                self._lengths[-1] += length
            else:
                self._lengths.append(length)
                self._groups.append(group)

    @classmethod
    def of(cls, parts: Sequence[tuple[int, int]]) -> WeightGroups | None:
        """Return the groups of some parts, None where every weight is on its own."""
        return cls(parts) if any(group > 1 for _, group in parts) else None

    def total(self, values: Tensor) -> Tensor:
        """Return for every weight the sum over its group, shape (..., P)."""
        if len(self._lengths) == 1:
            return _total(values, self._groups[0])
        parts = values.split(self._lengths, dim=-1)
        return torch.cat([_total(p, n) for p, n in zip(parts, self._groups, strict=True)], dim=-1)


def _total(values: Tensor, group: int) -> Tensor:
    if group == 1:
        return values
    groups = values.unflatten(-1, (-1, group))
    return groups.sum(-1, keepdim=True).expand_as(groups).flatten(-2)
