# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A hidden Markov model whose states are summed out, as one distribution of Pyro's."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Tensor


class HiddenMarkov(TorchDistribution):
    """
    Sequences of K states, of which the first is any with probability 1/K; the next follows a row of
    ``transition``; an observation is Normal(mean of the state, scale).

    The rows of ``transition`` are used as they are, not divided by their sum. So the derivative of
    the log density by a number of them, times that number, is how many such transitions are to be
    expected given the observations.

    :param Tensor transition: rows that sum to 1, shape (K, K).
    :param Tensor means: shape (K,).
    :param Tensor scale: standard deviation, one number.
    :param int length: of a sequence.
    """

    arg_constraints = {
        "transition": constraints.simplex,
        "means": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        transition: Tensor,
        means: Tensor,
        scale: Tensor,
        length: int,
        batch_shape: Any = (),
        validate_args: bool | None = None,
    ) -> None:
        self.transition, self.means, self.scale, self.length = transition, means, scale, length
        super().__init__(torch.Size(batch_shape), torch.Size([length]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: object = None) -> HiddenMarkov:
        """The same law for every sequence of a batch."""
        given = self.transition, self.means, self.scale, self.length
        return HiddenMarkov(*given, batch_shape=batch_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of sequences, shape (..., length), by forward recursion."""
        emission = Normal(self.means, self.scale, validate_args=False).log_prob(value[..., None])
        forward = emission[..., 0, :] - torch.tensor(float(len(self.means))).log()
        log_transition = self.transition.log()
        for t in range(1, self.length):
            ahead = torch.logsumexp(forward[..., :, None] + log_transition, -2)
            forward = ahead + emission[..., t, :]
        return torch.logsumexp(forward, -1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Observations, shape (..., length)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        states = [torch.randint(len(self.means), shape)]
        for _ in range(1, self.length):
            states.append(torch.distributions.Categorical(self.transition[states[-1]]).sample())
        path = self.means[torch.stack(states, -1)]
        return path + self.scale * torch.randn_like(path)
