# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The variance of the gradient's noise between minibatches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_aeb.tuning.saved import Saved


@dataclass
class GradientNoise(Saved):
    """
    Running mean of the variance over probes and chains, shape (D,).

    :param int probes: since the mean began.
    """

    variance: Tensor
    probes: int = 0

    def add(self, first: Tensor, second: Tensor, rate: float) -> None:
        """Add two gradients at one position, of two batches, shape (..., D)."""
        self.probes += 1
        square = 0.5 * (first - second).square().reshape(-1, first.shape[-1]).mean(0)
        self.variance = torch.lerp(self.variance, square, max(rate, 1.0 / self.probes))

    def of_worst_site(self, scale: Tensor, sites: Mapping[str, slice]) -> float:
        """Return the largest mean of a site, of the weights divided by their scale."""
        noise = self.variance * scale.square()
        return max((float(noise[place].mean()) for place in sites.values()), default=0.0)


def excess_temperature(noise: float, step_size: float, friction: float, tau: float) -> float:
    r"""
    Return the share by which gradient noise of that variance, independent between steps, raises the
    kinetic temperature: :math:`\eta \tau g / (4 \tanh(\alpha / 2))`.
    """
    return step_size * tau * noise / (4.0 * math.tanh(0.5 * friction))
