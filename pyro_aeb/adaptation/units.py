# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The units of the sparse weights, of one gamma each: single weights and groups of m. Each unit may
have a matrix of m rows, one for every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_aeb.adaptation.segments import WeightGroups

Blocks = list[Tensor]
"""The matrices of all units, of shape (..., G, m, m) for each part of G groups of m."""


class Units(WeightGroups):
    """
    The U units of P weights.

    :param parts: length and group size of each part of the vector; 1 is a weight of its own.
    """

    def __init__(self, parts: Sequence[tuple[int, int]]) -> None:
        super().__init__(parts)
        self.largest = max(self._groups)
        self._units = [n // m for n, m in zip(self._lengths, self._groups, strict=True)]
        self.count = sum(self._units)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the weights of each unit, shape (..., P) to (..., U)."""
        if self.largest == 1:
            return values
        return torch.cat([part.sum(-1) for part in self.split(values)], dim=-1)

    def first(self, values: Tensor) -> Tensor:
        """Return the value of each unit's first weight, shape (..., P) to (..., U)."""
        return torch.cat([part[..., 0] for part in self.split(values)], dim=-1)

    def spread(self, values: Tensor) -> Tensor:
        """Spread one value a unit, shape (..., U) to (..., P)."""
        if self.largest == 1:
            return values
        parts = zip(values.split(self._units, dim=-1), self._groups, strict=True)
        return torch.cat([part.repeat_interleave(m, -1) for part, m in parts], dim=-1)

    def columns(self) -> list[Tensor]:
        """Return, part by part, the places of all weights of every weight's unit, (G m, m)."""
        places = self.split(torch.arange(sum(self._lengths)))
        return [part.repeat_interleave(part.shape[-1], 0) for part in places]

    def blocks(self, flat: Tensor) -> Blocks:
        """Return the matrices that a vector holds, row by row, unit by unit."""
        sizes = [n * m for n, m in zip(self._lengths, self._groups, strict=True)]
        parts = zip(flat.split(sizes, dim=-1), self._groups, strict=True)
        return [part.unflatten(-1, (-1, m, m)) for part, m in parts]

    def map(self, function: Callable[..., Tensor], *operands: Tensor | Blocks) -> Tensor:
        """
        Apply a function to every part of some vectors, as shape (..., G, m), and of some blocks.

        :param function: its results are of shape (..., G, m).
        :param operands: shape (..., P) each, or blocks.
        :returns: shape (..., P).
        """
        parts = [o if isinstance(o, list) else self.split(o) for o in operands]
        return torch.cat([function(*p).flatten(-2) for p in zip(*parts, strict=True)], dim=-1)

    def split(self, values: Tensor) -> list[Tensor]:
        """Return the parts of a vector, shape (..., G, m) each."""
        parts = zip(values.split(self._lengths, dim=-1), self._groups, strict=True)
        return [part.unflatten(-1, (-1, m)) for part, m in parts]


def multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply vectors, shape (..., m), by matrices, shape (..., m, m)."""
    if x.shape[-1] == 1:
        return matrix.squeeze(-1) * x
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def diagonal(matrix: Tensor) -> Tensor:
    """Return the diagonals of matrices, shape (..., m)."""
    return matrix.diagonal(dim1=-2, dim2=-1)


def add_diagonal(matrix: Tensor, x: Tensor) -> Tensor:
    """Return matrices with vectors, shape (..., m), added to their diagonals."""
    return matrix + torch.diag_embed(x)


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower root of positive definite matrices."""
    return matrix.sqrt() if matrix.shape[-1] == 1 else torch.linalg.cholesky(matrix)


def solve(root: Tensor, x: Tensor, transpose: bool = False) -> Tensor:
    """Solve R y = x, or its transpose, for a lower root R, shape (..., m, m)."""
    if x.shape[-1] == 1:
        return x / root.squeeze(-1)
    root = root.mT if transpose else root
    return torch.linalg.solve_triangular(root, x.unsqueeze(-1), upper=transpose).squeeze(-1)


def make_positive(matrix: Tensor) -> Tensor:
    """Return the nearest positive semidefinite matrices."""
    matrix = 0.5 * (matrix + matrix.mT)
    if matrix.shape[-1] == 1:
        return matrix.clamp(min=0.0)
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).unsqueeze(-2)) @ vectors.mT
