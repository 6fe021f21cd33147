# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A step of gradient ascent, where there is no closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_aeb.latents.contract import AveragedStatistics, LatentUpdate, Seen
from pyro_aeb.validation import positive


@dataclass(frozen=True)
class GradientStep(LatentUpdate):
    r"""
    Moves a latent up the gradient of the log joint density, in unconstrained space:
    :math:`\tilde u = u + s \nabla_u \log p`. The fixed point is the maximiser over the site's own
    value (no term for the change of variables is added).

    Equation (8) is taken in that space too, so a step moves by :math:`\omega_k s` times the
    gradient: choose s of the size of one over the curvature.

    :param float step_size: s, positive. The gradient is that of the whole data set (a sum).
    """

    step_size: float

    def __post_init__(self) -> None:
        positive("GradientStep: step_size", self.step_size)

    def of(self, prior: Any) -> InSpace:
        """The update in the unconstrained space of a site's support."""
        return InSpace(self.step_size, biject_to(prior.support))


@dataclass(frozen=True)
class InSpace(AveragedStatistics):
    """
    A step in an unconstrained space.

    :param float step_size: s.
    :param Transform transform: from there to the site's values.
    """

    step_size: float
    transform: Transform
    derivatives = 1

    def statistics(self, seen: Seen) -> Tensor:
        """The unconstrained value after a step up."""
        free = self.transform.inv(seen.value)
        pull_back: Any = torch.func.vjp(self.transform, free)[1]
        (gradient,) = pull_back(seen.gradient)
        return free + self.step_size * gradient

    def maximiser(self, statistics: Tensor) -> Tensor:
        """The value itself."""
        return self.transform(statistics)

    def first(self, statistics: Tensor, value: Tensor) -> Tensor:
        """The unconstrained value before the first step."""
        return self.transform.inv(value)
