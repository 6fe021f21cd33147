# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Samplers with one mistake each, and some that are right and not linear. They are at the top level of
a module, so that they can be pickled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Constant
from pyro_aeb.transitions import SGHMC, SGLD, SGLDState


@dataclass(frozen=True)
class Langevin:
    """SGLD, with its step in a method to override."""

    step_size: Constant = Constant(0.05)

    def init(self, position):
        return SGLDState(position)

    def step(self, state, gradient, noise, numbers):
        epsilon, tau = numbers
        return SGLDState(state.position + self.move(state, gradient, noise, epsilon, tau))

    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * gradient + math.sqrt(2 * epsilon / tau) * noise


class NoiseTooSmall(Langevin):
    """Uses Welling and Teh's step size, twice this one, in the noise alone."""

    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * gradient + math.sqrt(epsilon / tau) * noise


class NoiseOfAnotherOrder(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * gradient + 2 * epsilon / tau * noise


class WrongSign(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return -epsilon * gradient + math.sqrt(2 * epsilon / tau) * noise


class NoTemperature(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * gradient + math.sqrt(2 * epsilon) * noise


class TemperatureTwice(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return tau * epsilon * gradient + math.sqrt(2 * epsilon / tau) * noise


class NoNoise(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * gradient


class WeightDecay(Langevin):
    """Adds a force."""

    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * (gradient - 0.1 * state.position) + math.sqrt(2 * epsilon / tau) * noise


class OwnStepSize(Langevin):
    """Evaluates its own schedule, at step 1."""

    def move(self, state, gradient, noise, epsilon, tau):
        return super().move(state, gradient, noise, self.step_size(1) * epsilon, tau)


class ConstantStepSize(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return super().move(state, gradient, noise, 0.05, tau)


class OwnNoise(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return super().move(state, gradient, torch.randn_like(noise), epsilon, tau)


class InPlace(Langevin):
    def step(self, state, gradient, noise, numbers):
        state.position.add_(self.move(state, gradient, noise, *numbers))
        return state


class NoiseInPlace(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return epsilon * gradient + noise.mul_(math.sqrt(2 * epsilon / tau))


class MixesChains(Langevin):
    """Subtracts the mean of the gradient over chains and weights alike."""

    def move(self, state, gradient, noise, epsilon, tau):
        return super().move(state, gradient - gradient.mean(), noise, epsilon, tau)


class SinglePrecision(Langevin):
    def move(self, state, gradient, noise, epsilon, tau):
        return super().move(state, gradient.float(), noise, epsilon, tau).to(noise.dtype)


class Remembers(Langevin):
    """Counts its steps in itself."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "memory", [])

    def move(self, state, gradient, noise, epsilon, tau):
        self.memory.append(1)
        return super().move(state, gradient, noise, epsilon / len(self.memory), tau)


class MeanOverChains(Langevin):
    """Its figure for sample_stats is one number, however many chains there are."""

    def statistics(self, before, state, numbers):
        return {"size": (state.position - before.position).square().mean()}


class Swapped(NamedTuple):
    momentum: Tensor
    position: Tensor


class PositionLast(Langevin):
    def init(self, position):
        return Swapped(torch.zeros_like(position), position)


class WithPrevious(NamedTuple):
    position: Tensor
    gradient: Tensor


class KeepsTheGradient(Langevin):
    """Its state is the memory that the kernel writes the next gradient into."""

    def init(self, position):
        return WithPrevious(position, torch.zeros_like(position))

    def step(self, state, gradient, noise, numbers):
        move = self.move(state, gradient, noise, *numbers)
        return WithPrevious(state.position + move, gradient)


@dataclass(frozen=True)
class MomentumWithoutFriction(SGHMC):
    """Injects noise as if there were more friction than there is."""

    __init__ = SGHMC.__init__

    def step(self, state, gradient, noise, numbers):
        eta, tau = numbers
        momentum = (1 - self.friction / 2) * state.momentum + eta * gradient
        momentum = momentum + math.sqrt(2 * eta * self.friction / tau) * noise
        return state._replace(position=state.position + momentum, momentum=momentum)


# -- not linear


class ThermostatState(NamedTuple):
    position: Tensor
    momentum: Tensor
    friction: Tensor


@dataclass(frozen=True)
class Thermostat:
    """
    SGNHT of Ding et al. (2014): a friction, one a chain, that holds the kinetic energy. The energy
    of the discretised momentum is 1 / (1 - friction / 2) times what it holds it at, so the variance
    is too small by that.
    """

    step_size: Constant = Constant(0.05)
    friction: float = 0.05

    def init(self, position):
        start = torch.full_like(position[..., :1], self.friction)
        return ThermostatState(position, torch.zeros_like(position), start)

    def step(self, state, gradient, noise, numbers):
        eta, tau = numbers
        momentum = (1 - state.friction) * state.momentum + eta * gradient
        momentum = momentum + self.scale(eta, tau) * noise
        energy = momentum.square().mean(-1, keepdim=True) * tau / eta
        friction = state.friction + eta * (energy - 1)
        return ThermostatState(state.position + momentum, momentum, friction)

    def scale(self, eta, tau):
        return math.sqrt(2 * eta * self.friction / tau)


class ThermostatWithoutTemperature(Thermostat):
    """The thermostat holds the energy at tau = 1, whatever tau is."""

    def step(self, state, gradient, noise, numbers):
        return super().step(state, gradient, noise, numbers._replace(inverse_temperature=1.0))


@dataclass(frozen=True)
class Clipped(SGLD):
    """SGLD that clips the gradient, which makes tails longer."""

    __init__ = SGLD.__init__

    def step(self, state, gradient, noise, numbers):
        return super().step(state, gradient.clamp(-1.0, 1.0), noise, numbers)
