# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The scale of every weight, from the diagonal of the curvature H of -Q, by Hutchinson's estimator
[1]: for random signs z, :math:`z_i (H z)_i` has the mean :math:`H_{ii}`.

**References**

[1] M. F. Hutchinson (1989), "A stochastic estimator of the trace of the influence matrix for
    Laplacian smoothing splines", Communications in Statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_aeb.tuning.saved import Saved

FLATTEST = 1e-6
"""The least curvature of a weight beside the median of its site."""

LEAST_SITE = 3
"""The largest number of weights of a site without a median worth the name."""


@dataclass
class Diagonal(Saved):
    """
    Running means of curvatures and of their squares, over probes and chains, shape (D,).

    :param int probes: since the means began.
    """

    mean: Tensor
    square: Tensor
    probes: int = 0

    def add(self, curvature: Tensor, rate: float) -> None:
        """
        Add a probe.

        :param Tensor curvature: unbiased estimates of the diagonal, shape (..., D).
        :param float rate: weight of the probe, once there are more than ``1 / rate``.
        """
        self.probes += 1
        weight = max(rate, 1.0 / self.probes)
        size = curvature.shape[-1]
        self.mean = torch.lerp(self.mean, curvature.reshape(-1, size).mean(0), weight)
        square = curvature.square().reshape(-1, size).mean(0)
        self.square = torch.lerp(self.square, square, weight)

    def scale(self, sites: Mapping[str, slice]) -> Tensor:
        """
        Return one over the root of the curvatures. A curvature that its noise hides, or that is not
        positive, is at least a tenth of the root mean square of its probes, and gives no wild
        scale.
        """
        curvature = torch.maximum(self.mean, 0.1 * self.square.sqrt())
        least = torch.finfo(curvature.dtype).tiny ** 0.5
        for place in sites.values():
            values = curvature[place]
            median = float(values.median()) if len(values) > LEAST_SITE else 0.0
            values.clamp_(min=max(FLATTEST * median, least))
        return curvature.rsqrt()
