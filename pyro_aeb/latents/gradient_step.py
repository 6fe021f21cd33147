# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A step of gradient ascent, where there is no closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_aeb.latents.contract import LatentUpdate, Seen


class GradientStep(LatentUpdate):
    r"""
    Moves a latent up the gradient of the log joint density, in unconstrained space:
    :math:`\tilde u = u + s \nabla_u \log p`. The fixed point is the maximiser over the site's own
    value (no term for the change of variables is added).

    With the weight :math:`\omega_k` of equation (8) a step moves by :math:`\omega_k s` times the
    gradient, to first order: choose s of the size of one over the curvature.

    :param float step_size: s, positive. The gradient is that of the whole data set (a sum).
    """

    derivatives = 1

    def __init__(self, step_size: float) -> None:
        if not 0.0 < step_size < math.inf:
            raise ValueError(f"GradientStep: step_size is {step_size}, expected a positive number")
        self.step_size = float(step_size)
        self._transform: Transform | None = None

    def __repr__(self) -> str:
        return f"GradientStep(step_size={self.step_size})"

    def of(self, prior: Any) -> GradientStep:
        """The update in the unconstrained space of a site's support."""
        update = GradientStep(self.step_size)
        update._transform = biject_to(prior.support)
        return update

    def update(self, seen: Seen) -> Tensor:
        """A step up."""
        assert self._transform is not None
        assert seen.gradient is not None
        free = self._transform.inv(seen.value)
        pull_back: Any = torch.func.vjp(self._transform, free)[1]
        (gradient,) = pull_back(seen.gradient)
        return self._transform(free + self.step_size * gradient)
