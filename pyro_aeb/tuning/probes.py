# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Estimates of the curvature, and of the noise of gradients, from gradients near a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.tuning.diagonal import Diagonal
from pyro_aeb.tuning.largest import Largest
from pyro_aeb.tuning.noise import GradientNoise
from pyro_aeb.tuning.saved import Saved

RADIUS = 0.5
"""Displacement of a probe, in units of the scale."""

Gradient = Callable[[Tensor], Tensor]
"""The gradient of Q with one batch, as a function of the position."""

Gradients = Callable[[], Gradient]
"""Takes the next batch, and returns the gradient of Q with it."""


class Probes:
    """
    The estimates, and the scale of every weight that follows from them.

    :param sites: site to its place in the position.
    :param Tensor position: where the chain starts, shape (..., D).
    :param bool learns_scale: whether the scale follows from the curvature; else it is given.
    :param bool minibatches: whether gradients are of minibatches.
    :param generator: of random directions.
    """

    def __init__(
        self,
        sites: Mapping[str, slice],
        position: Tensor,
        learns_scale: bool,
        minibatches: bool,
        generator: torch.Generator,
    ) -> None:
        self._sites, self._generator = sites, generator
        self._learns_scale, self._minibatches = learns_scale, minibatches
        zeros = torch.zeros_like(position[(0,) * (position.dim() - 1)])
        self._diagonal = Diagonal(zeros, zeros)
        self._largest = Largest.start(position, self._normal(position))
        self._noise = GradientNoise(zeros)
        self.scale = torch.ones_like(zeros)

    @property
    def largest(self) -> float:
        """The largest curvature that remains, in units of the scale."""
        return self._largest.value

    @property
    def noise(self) -> float:
        """The noise of the gradient at the site where it is worst, in units of the scale."""
        return self._noise.of_worst_site(self.scale, self._sites)

    def start(self, position: Tensor, scale: Tensor, gradients: Gradients) -> None:
        """Find a first scale, from that of the state, and the largest curvature with it."""
        self.scale = scale[(0,) * (position.dim() - 1)].clone()
        for repetition in range(6 if self._learns_scale else 1):
            self._diagonal = Diagonal(torch.zeros_like(self.scale), torch.zeros_like(self.scale))
            for _ in range(10):
                self.probe(position, gradients, 0.05)
            before = self.scale
            self.take_scale()
            change = (self.scale / before).log().abs().max()
            if repetition >= 2 and float(change) < 0.7:
                break
        self.measure_largest(position, gradients(), 10)

    def probe(self, position: Tensor, gradients: Gradients, rate: float) -> None:
        """Estimate the diagonal of the curvature, and the noise of the gradient."""
        signs = torch.randint(0, 2, position.shape, generator=self._generator).to(position) * 2 - 1
        gradient, step = gradients(), RADIUS * self.scale * signs
        above, below = gradient(position + step), gradient(position - step)
        curvature = (below - above) / (2.0 * step)
        if not bool(torch.isfinite(curvature).all()):
            return
        self._diagonal.add(curvature, rate)
        if self._minibatches:
            other = gradients()(position)
            if bool(torch.isfinite(other).all()):
                self._noise.add(0.5 * (above + below), other, rate)

    def measure_largest(self, position: Tensor, gradient: Gradient, iterations: int) -> None:
        """Estimate the largest curvature by so many power iterations."""
        rest = self._normal(position)
        self._largest.update(gradient, position, self.scale, rest, iterations)

    def take_scale(self) -> None:
        """Take the scale that follows from the curvature, where it is not given."""
        if self._learns_scale and self._diagonal.probes:
            self.scale = self._diagonal.scale(self._sites)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like)

    def _parts(self) -> dict[str, Saved]:
        return {"diagonal": self._diagonal, "largest": self._largest, "noise": self._noise}

    def state(self) -> dict[str, Any]:
        """Return all that the next estimates depend on, but for the generator."""
        return {"scale": self.scale, **{name: part.state() for name, part in self._parts().items()}}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore another's :meth:`state` on a device."""
        self.scale = state["scale"].to(device)
        for name, part in self._parts().items():
            part.load(state[name], device)
