# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Some of the second derivatives of a log density, from its gradient's graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 256
"""Rows of second derivatives that are taken at once, a bound on their memory."""


def minus_second_derivatives(
    gradient: Tensor, position: Tensor, columns: Sequence[Tensor]
) -> Tensor:
    """
    Return some of the derivatives of minus a gradient, shape (..., n).

    :param Tensor gradient: of a log density at a position, both of shape (..., D), with its graph.
    :param columns: of the first rows, those of every row, shape (rows, m) each.
    """
    found, row = [], 0
    for own in columns:
        for some in own.to(position.device).split(ROWS):
            ends = torch.zeros(len(some), position.shape[-1], device=position.device)
            ends = ends.to(position.dtype)
            ends[torch.arange(len(some)), row + torch.arange(len(some))] = -1.0
            rows = _rows(gradient, position, ends)
            places = some.reshape(len(some), *(1 for _ in position.shape[:-1]), -1)
            found.append(rows.gather(-1, places.expand(*rows.shape[:-1], -1)))
            row += len(some)
    return torch.cat([part.movedim(0, -2).flatten(-2) for part in found], dim=-1)


def _rows(gradient: Tensor, position: Tensor, ends: Tensor) -> Tensor:
    """Return the derivatives of weighted sums of the gradient, shape (rows, ..., D)."""
    if not gradient.requires_grad:  # the log density is linear
        return ends.new_zeros(len(ends), *position.shape)
    weights = ends.reshape(len(ends), *(1 for _ in position.shape[:-1]), -1).expand(
        -1, *position.shape
    )
    (rows,) = torch.autograd.grad(
        gradient, position, weights, retain_graph=True, is_grads_batched=True
    )
    return rows
