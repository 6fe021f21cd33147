# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Gradient ascent, for latents without a closed form."""

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
    Move a latent along the gradient of the log joint density, in unconstrained space:
    :math:`\tilde u = u + s \nabla_u \log p`. The fixed point is the maximiser over the site's
    constrained value: there is no Jacobian term.

    Equation (8) averages in unconstrained space, so a step moves by :math:`\omega_k s` times the
    gradient: choose s of the order of one over the curvature.

    :param float step_size: s, positive. The gradient is that of the whole data set, a sum.
    :raises TypeError: if the step size is no number.
    :raises ValueError: if it is not positive and finite.
    """

    step_size: float

    def __post_init__(self) -> None:
        positive("GradientStep: step_size", self.step_size)

    def of(self, prior: Any) -> UnconstrainedStep:
        """Return the update in the unconstrained space of a site's support."""
        return UnconstrainedStep(self.step_size, biject_to(prior.support))


@dataclass(frozen=True)
class UnconstrainedStep(AveragedStatistics):
    """
    A gradient step in unconstrained space.

    :param float step_size: s.
    :param Transform transform: from unconstrained space to the site's values.
    """

    step_size: float
    transform: Transform
    derivatives = 1

    def statistics(self, seen: Seen) -> Tensor:
        """Return the unconstrained value after a step."""
        free = self.transform.inv(seen.value)
        pull_back: Any = torch.func.vjp(self.transform, free)[1]
        (gradient,) = pull_back(seen.gradient)
        return free + self.step_size * gradient

    def maximiser(self, statistics: Tensor) -> Tensor:
        """Return the constrained value."""
        return self.transform(statistics)

    def first(self, statistics: Tensor, value: Tensor) -> Tensor:
        """Return the unconstrained initial value."""
        return self.transform.inv(value)
