# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sums of squared residuals by sigma, of a likelihood whose data have several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.model.structure import Residuals


class SeveralSigmas:
    """
    The sigmas of a likelihood that has several.

    :param Tensor index: of the sigmas of its data, which broadcasts to their shape.
    :param numbers: of all sigmas, their index in the flat value of their site.
    """

    def __init__(self, index: Tensor, numbers: Sequence[int]) -> None:
        self._shape = index.shape
        self._numbers = torch.tensor(numbers, device=index.device)[index.flatten()]

    def residuals(
        self, squares: Tensor, counts: Tensor | None, scale: Any, sigma2: Tensor
    ) -> Residuals:
        """
        Return the residuals for each sigma.

        :param Tensor squares: of all data, in units of sigma squared.
        :param counts: how often each datum counts, None for once.
        :param scale: N/n of the plates.
        :param Tensor sigma2: the squares of all sigmas of the site.
        """
        own = sigma2.reshape(-1).index_select(0, self._numbers)
        square = self._sum(squares) * own * scale
        if counts is None:
            each = squares.numel() // own.numel() * scale
            return Residuals(square, torch.full_like(square, each))
        return Residuals(square, self._sum(counts.to(squares.dtype)) * scale)

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over the axes along which sigma is the same."""
        shape = (*(1 for _ in range(values.dim() - len(self._shape))), *self._shape)
        axes = [axis for axis, size in enumerate(shape) if size == 1]
        return (values.sum(axes) if axes else values).flatten()
