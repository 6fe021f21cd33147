# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Which consecutive weights share a gamma: the groups of a group spike-and-slab prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
