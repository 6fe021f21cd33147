# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A density with two distant modes, and simulations of it: a mixture of two normal densities of
standard deviation 1/2 at -3 and 3, with weights 0.7 and 0.3. Between them Q falls by
(3 / 0.5)^2 / 2 = 18, a barrier that Langevin dynamics at tau = 1 crosses once in about e^18 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.transitions import Evaluated, StepNumbers, TargetTransition
from pyro_aeb.transitions.base import noise_size

MEANS, SD, SHARES = (-3.0, 3.0), 0.5, (0.7, 0.3)


@dataclass
class TwoModes:
    """The target of a step, with one coordinate per chain and an error of the gradient."""

    step: int
    error: Tensor | float = 0.0

    def whole(self, position: Tensor, prior: bool = True) -> Evaluated:
        offsets = [(position - mean) / SD for mean in MEANS]
        logs = [-0.5 * z * z + math.log(share) for z, share in zip(offsets, SHARES, strict=True)]
        total = torch.logaddexp(*logs)
        pulls = [(log - total).exp() * -z / SD for log, z in zip(logs, offsets, strict=True)]
        return Evaluated(total[..., 0], pulls[0] + pulls[1])

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        log_density, gradient = self.whole(position, prior)
        return Evaluated(log_density, gradient + self.error)


def simulate(
    transition: Any, steps: int, chains: int, noise: float = 0.0, start: float = MEANS[0]
) -> Iterator[tuple[Any, Any, StepNumbers, TwoModes]]:
    """
    Simulate chains, and yield the states before and after every step, its numbers and its target.

    :param float noise: standard deviation of the noise of the gradient.
    :param float start: initial position of all chains.
    """
    generator = torch.Generator().manual_seed(0)
    position = torch.full((chains, 1), start, dtype=torch.float64)
    state = transition.init(position)
    z = torch.empty(chains, noise_size(transition, 1), dtype=torch.float64)
    for k in range(1, steps + 1):
        before, error = state, 0.0
        if noise:
            error = noise * torch.randn(chains, 1, generator=generator, dtype=torch.float64)
        target = TwoModes(k, error)
        evaluated = target.batch(before.position)
        numbers = StepNumbers(transition.step_size(k), 1.0)
        z.normal_(generator=generator)
        if isinstance(transition, TargetTransition):
            state = transition.move(before, evaluated, z, numbers, target)
        else:
            state = transition.step(before, evaluated.gradient, z, numbers)
        yield before, state, numbers, target
