# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The largest curvature of the weights divided by their scale, by power iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_aeb.tuning.saved import Saved

RADIUS = 2.5
"""
Length of the largest displacement at which gradients are compared, in units of the scale: large
enough for single precision and for kinks, small enough to be local.
"""

REST = 0.05
"""Share of a random direction that is added to the last one, so that none is lost."""


@dataclass
class Largest(Saved):
    """
    Running estimate of the largest curvature, that of the worst of the chains.

    :param float value: 0 before the first.
    :param Tensor direction: of every chain, shape (..., D).
    """

    direction: Tensor
    value: float = 0.0

    def update(
        self,
        gradient: Callable[[Tensor], Tensor],
        position: Tensor,
        scale: Tensor,
        rest: Tensor,
        iterations: int,
    ) -> None:
        """
        Iterate from the last direction. A larger value replaces the last one, a smaller one moves
        it by a fifth. Where no gradient is finite nothing changes.

        :param gradient: of Q, with one batch.
        :param Tensor position: shape (..., D).
        :param Tensor rest: standard normal numbers of that shape.
        """
        size = position.shape[-1]
        direction = self.direction + REST * rest / math.sqrt(size)
        direction = direction / direction.norm(dim=-1, keepdim=True)
        radius = min(0.5 * math.sqrt(size), RADIUS)
        norms = direction[..., :1]
        for _ in range(iterations):
            step = radius * scale * direction
            change = gradient(position - step) - gradient(position + step)
            curvature = scale * change / (2.0 * radius)
            norms = curvature.norm(dim=-1, keepdim=True)
            largest = float(norms.max())
            if not math.isfinite(largest) or float(norms.min()) == 0.0:
                return
            direction = curvature / norms
        self.direction = direction
        self.value = max(largest, 0.8 * self.value + 0.2 * largest)

    @staticmethod
    def start(position: Tensor, rest: Tensor) -> Largest:
        """Return the estimate before the first iteration."""
        return Largest(torch.zeros_like(position) + rest)
