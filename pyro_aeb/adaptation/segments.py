# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sums over the parts of a vector that share a parameter, and the way back.

A few groups are summed part by part. For many, the vector is cut into rows of :data:`ROW` numbers:
rows that lie within one group are summed as rows, and only the numbers of the rows that a boundary
runs through one by one. The number of operations is then the same for any number of groups, and
nothing is added up in an order that changes from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROW = 256
"""Numbers in a row."""


FEW = 4
"""Runs up to which a vector is summed part by part."""


@dataclass(frozen=True)
class Groups:
    """
    Which consecutive runs of a vector of P numbers share a parameter.

    :param tuple sizes: the length of each run; they add up to P.
    :param tuple index: the group of each run.
    :param int count: how many groups there are.
    :param torch.device device: where the vectors are.
    """

    sizes: tuple[int, ...]
    index: tuple[int, ...]
    count: int
    device: torch.device = torch.device("cpu")
    _rows: _Rows | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        many = self.count > 1 and len(self.sizes) > FEW
        object.__setattr__(self, "_rows", _Rows.of(self) if many else None)

    def spread(self, values: Tensor) -> Tensor:
        """One value a group, shape (..., count), to a shape that broadcasts with (..., P)."""
        if self.count == 1:
            return values
        if self._rows is None:
            each = values.split(1, dim=-1)
            runs = [each[g].expand(*values.shape[:-1], n) for g, n in self._runs]
            return torch.cat(runs, dim=-1)
        rows = self._rows
        spread = values.index_select(-1, rows.first).repeat_interleave(ROW, dim=-1)
        spread = spread[..., : sum(self.sizes)]
        return spread.index_copy_(-1, rows.loose, values.index_select(-1, rows.loose_group))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over each group, shape (..., P) to (..., count)."""
        if self.count == 1:
            return values.sum(-1, keepdim=True)
        if self._rows is None:
            totals: dict[int, Tensor] = {}
            for group, part in zip(self.index, values.split(self.sizes, dim=-1), strict=True):
                total = part.sum(-1)
                totals[group] = totals[group] + total if group in totals else total
            return torch.stack([totals[group] for group in range(self.count)], dim=-1)
        rows = self._rows
        parts = [values.index_select(-1, rows.loose), values.new_zeros(*values.shape[:-1], 1)]
        if values.shape[-1] >= ROW:
            parts.insert(0, values.unfold(-1, ROW, ROW).sum(-1))
        members = torch.cat(parts, dim=-1).index_select(-1, rows.members)
        return members.unflatten(-1, (self.count, -1)).sum(-1)

    def lengths(self) -> list[float]:
        """The number of weights of each group."""
        lengths = [0.0] * self.count
        for group, size in self._runs:
            lengths[group] += size
        return lengths

    @property
    def _runs(self) -> list[tuple[int, int]]:
        return list(zip(self.index, self.sizes, strict=True))


@dataclass(frozen=True)
class _Rows:
    """
    The rows of a vector of P numbers, the last of which may be short.

    :param Tensor first: the group of the first number of every row.
    :param Tensor loose: the places of the numbers of all rows that are short or of several groups.
    :param Tensor loose_group: their groups.
    :param Tensor members: which of (the full rows, the loose numbers, a zero) each group is the sum
        of: a rectangle with a row for each group, flat, filled up with the zero.
    """

    first: Tensor
    loose: Tensor
    loose_group: Tensor
    members: Tensor

    @classmethod
    def of(cls, groups: Groups) -> _Rows:
        size = sum(groups.sizes)
        group = torch.repeat_interleave(torch.tensor(groups.index), torch.tensor(groups.sizes))
        full = group[: size // ROW * ROW].reshape(-1, ROW)
        inside = (full == full[:, :1]).all(1)
        whole = inside.nonzero().flatten()
        loose = torch.ones(size, dtype=torch.bool)
        loose[: full.numel()] = ~inside.repeat_interleave(ROW)
        places = loose.nonzero().flatten()
        summed = torch.cat([whole, len(full) + torch.arange(len(places))])
        of = torch.cat([full[whole, 0], group[places]])
        members = pad_sequence(
            [summed[of == g] for g in range(groups.count)],
            batch_first=True,
            padding_value=len(full) + len(places),
        )
        parts = (group[::ROW], places, group[places], members.flatten())
        return cls(*(part.contiguous().to(groups.device) for part in parts))


class Units:
    """
    A vector of weights in parts, each cut into groups of one size.

    :param parts: length and group size of each part; 1 is a weight of its own.
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
    def of(cls, parts: Sequence[tuple[int, int]]) -> Units | None:
        """The groups of some parts, None where every weight is on its own."""
        return cls(parts) if any(group > 1 for _, group in parts) else None

    def total(self, values: Tensor) -> Tensor:
        """Every weight's sum over its group, shape (..., P)."""
        if len(self._lengths) == 1:
            return _total(values, self._groups[0])
        parts = values.split(self._lengths, dim=-1)
        return torch.cat([_total(p, n) for p, n in zip(parts, self._groups, strict=True)], dim=-1)


def _total(values: Tensor, group: int) -> Tensor:
    if group == 1:
        return values
    groups = values.unflatten(-1, (-1, group))
    return groups.sum(-1, keepdim=True).expand_as(groups).flatten(-2)
