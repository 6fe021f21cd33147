# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Steps of any transition on a Gaussian target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.transitions import AnyTransition, Evaluated, StepNumbers, TargetTransition

NUMBERS = StepNumbers(step_size=0.05, inverse_temperature=2.0)


def random_numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw standard normal numbers; those of single precision are rounded doubles."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """
    A Gaussian Q of d coordinates, or of any number of independent copies of them.

    :param Tensor curvature: curvature H, shape (d, d), in float64.
    :param Tensor mean: mean m, shape (d,), in float64.
    """

    curvature: Tensor
    mean: Tensor

    def evaluate(self, position: Tensor, share: float = 1.0) -> Evaluated:
        """Evaluate ``share`` times Q at a position of shape (..., copies times d)."""
        curvature, mean = self.curvature.to(position), self.mean.to(position)
        offset = position.unflatten(-1, (-1, len(mean))) - mean
        gradient = (-share * offset @ curvature).flatten(-2)
        return Evaluated(0.5 * (offset.flatten(-2) * gradient).sum(-1), gradient)


STANDARD_NORMAL = Gaussian(torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class GaussianTarget:
    """
    A Gaussian :class:`~pyro_aeb.transitions.base.Target`. A quarter of it is the prior, and the
    gradient of its batch has the same error at all positions.

    :param Gaussian gaussian: Q of all data.
    :param int step: number of the step.
    :param Tensor error: error of the batch's gradient, shape (..., D).
    """

    gaussian: Gaussian
    step: int
    error: Tensor

    def whole(self, position: Tensor, prior: bool = True) -> Evaluated:
        return self.gaussian.evaluate(position, 1.0 if prior else 0.75)

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        log_density, gradient = self.whole(position, prior)
        error = (position * self.error).sum(-1)
        return Evaluated(log_density + error, gradient + self.error)


def target_at(
    position: Tensor, gradient: Tensor, k: int = 1, gaussian: Gaussian = STANDARD_NORMAL
) -> GaussianTarget:
    """Return the target of step k whose batch has the given gradient at the given position."""
    return GaussianTarget(gaussian, k, gradient - gaussian.evaluate(position).gradient)


def advance(
    transition: AnyTransition,
    state: Any,
    gradient: Tensor,
    noise: Tensor,
    numbers: StepNumbers,
    k: int = 1,
    gaussian: Gaussian = STANDARD_NORMAL,
) -> Any:
    """
    Take step k of any transition.

    :param Tensor gradient: gradient of the batch at the state's position.
    :param Gaussian gaussian: Q of all data.
    """
    if not isinstance(transition, TargetTransition):
        return transition.step(state, gradient, noise, numbers)
    target = target_at(state.position, gradient, k, gaussian)
    evaluated = target.batch(state.position)._replace(gradient=gradient)
    return transition.move(state, evaluated, noise, numbers, target)


def run_steps(transition: AnyTransition, position: Tensor, noise: Tensor) -> list[Any]:
    """
    Return the first state and that after every step on the standard normal target.

    :param Tensor position: initial position, shape (..., D).
    :param Tensor noise: noise of the steps, shape (steps, ..., K), if a step takes K numbers.
    """
    states = [transition.init(position)]
    for k, z in enumerate(noise, 1):
        gradient = -states[-1].position
        states.append(advance(transition, states[-1], gradient, z, NUMBERS, k))
    return states


def copy_state(state: Any) -> Any:
    return type(state)(*(tensor.clone() for tensor in state))


def are_equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def relative_error(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """Return the largest difference, relative to the largest absolute number or 1."""
    pairs = list(zip(a, b, strict=True))
    scale = max([1.0, *(float(y.double().abs().max()) for _, y in pairs)])
    differences = [float((x.double() - y.double()).abs().max()) for x, y in pairs]
    return max(differences, default=0.0) / scale
