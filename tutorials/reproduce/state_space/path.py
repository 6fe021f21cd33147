# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The law of a path as one distribution of Pyro's, and so one site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class Path(TorchDistribution):
    """
    x_1 ~ Normal(0, 1), x_t ~ Normal(f(x_{t-1}), scale).

    :param transition: f, of a tensor of states, elementwise.
    :param Tensor scale: standard deviation of the noise, one number.
    :param int steps: T.
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        transition: Callable[[Tensor], Tensor],
        scale: Tensor,
        steps: int,
        validate_args: bool | None = None,
    ) -> None:
        self.transition, self.scale, self.steps = transition, scale, steps
        super().__init__(torch.Size(), torch.Size([steps]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of paths of shape (..., T)."""
        first = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(value[..., 0])
        ahead = torch.distributions.Normal(
            self.transition(value[..., :-1]), self.scale, validate_args=False
        )
        return first + ahead.log_prob(value[..., 1:]).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Paths, shape (..., T)."""
        noise = torch.randn(*sample_shape, self.steps, dtype=self.scale.dtype)
        path = [noise[..., 0]]
        for t in range(1, self.steps):
            path.append(self.transition(path[-1]) + self.scale * noise[..., t])
        return torch.stack(path, -1)
