# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A density with two modes that are far apart, of which everything is known: two normal densities of
standard deviation 1/2 at -3 and 3, with the shares 0.7 and 0.3. Between them Q falls by
(3 / 0.5)^2 / 2 = 18, which Langevin dynamics at tau = 1 climbs once in about e^18 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.testing.steps import noise_size
from pyro_aeb.transitions import Evaluated, StepNumbers, TargetTransition

MEANS, SD, SHARES = (-3.0, 3.0), 0.5, (0.7, 0.3)


@dataclass
class TwoModes:
    """The target of a step, of one coordinate a chain, with noise of the gradient if asked for."""

    step: int
    error: Tensor | float = 0.0

    def whole(self, position: Tensor, prior: bool = True) -> Evaluated:
        away = [(position - mean) / SD for mean in MEANS]
        logs = [-0.5 * z * z + math.log(share) for z, share in zip(away, SHARES, strict=True)]
        total = torch.logaddexp(*logs)
        pulls = [(log - total).exp() * -z / SD for log, z in zip(logs, away, strict=True)]
        return Evaluated(total[..., 0], pulls[0] + pulls[1])

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        log_density, gradient = self.whole(position, prior)
        return Evaluated(log_density, gradient + self.error)


def simulate(
    transition: Any, steps: int, chains: int, noise: float = 0.0, start: float = MEANS[0]
) -> Iterator[tuple[Any, Any, StepNumbers, TwoModes]]:
    """
    State before, state after, numbers and target of every step of many chains, all of which begin
    in the mode at -3.

    :param float noise: the standard deviation of the gradient's noise.
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
        here, numbers = target.batch(before.position), StepNumbers(transition.step_size(k), 1.0)
        z.normal_(generator=generator)
        if isinstance(transition, TargetTransition):
            state = transition.move(before, here, z, numbers, target)
        else:
            state = transition.step(before, here.gradient, z, numbers)
        yield before, state, numbers, target
