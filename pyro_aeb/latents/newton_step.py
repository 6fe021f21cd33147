# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Newton steps, for latents without a closed form that need no step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_aeb.latents.contract import AveragedStatistics, LatentUpdate, Seen


@dataclass(frozen=True)
class NewtonStep(LatentUpdate):
    r"""
    Move every number of a latent by a Newton step of the log joint density, in unconstrained space:
    :math:`\tilde u = u + g / h` with the gradient g and :math:`h = \max(|g''|, |g|)`, so that no
    step is longer than 1. It needs no step size.

    For a scale under a HalfCauchy, HalfNormal, Exponential or Gamma prior, of Normal or StudentT
    sites; also one for each output, in a plate. The numbers of the site enter the density
    separately. Equation (8) averages :math:`h u + g` and h, so that the limit is that of EM: the
    mode over the site's constrained value, without a Jacobian term, where the average of g is 0.
    """

    def of(self, prior: Any) -> UnconstrainedNewton:
        """
        Return the update in the unconstrained space of a site's support.

        :raises ValueError: if the site's numbers are bound to each other, as those of a simplex.
        """
        transform = biject_to(prior.support)
        if transform.domain.event_dim or transform.codomain.event_dim:
            raise ValueError(
                f"~ {type(prior).__name__}, whose numbers are bound to each other, expected ones "
                "that change separately; use latents.GradientStep(...) or latents.ClosedForm()"
            )
        return UnconstrainedNewton(transform)


@dataclass(frozen=True)
class UnconstrainedNewton(AveragedStatistics):
    """
    A Newton step in unconstrained space.

    :param Transform transform: from unconstrained space to the site's values, number by number.
    """

    transform: Transform
    derivatives = 2

    def statistics(self, seen: Seen) -> Tensor:
        """Return h u + g and h, stacked along a first axis."""
        first, second = seen.derivatives()
        free = self.transform.inv(seen.value)
        slope, bend = self._derivatives(free)
        gradient = first * slope
        curvature = second * slope.square() + first * bend
        tiny = torch.finfo(free.dtype).tiny
        size = torch.maximum(curvature.abs(), gradient.abs()).clamp(min=tiny)
        return torch.stack([size * free + gradient, size])

    def maximiser(self, statistics: Tensor) -> Tensor:
        """Return the constrained value."""
        numerator, size = statistics.unbind()
        return self.transform(numerator / size)

    def _derivatives(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and second derivative of the transform, number by number."""

        def slope(free: Tensor) -> Tensor:
            return torch.func.grad(lambda x: self.transform(x).sum())(free)

        return slope(free), torch.func.grad(lambda x: slope(x).sum())(free)
