# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The package's samplers, each with one mistake in its mechanism."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pyro_aeb.schedules import Cyclical
from pyro_aeb.transitions import (
    BAOAB,
    HMC,
    PSGLD,
    SGLD,
    SGNHT,
    SVRG,
    BAOABState,
    ContourSGLD,
    CyclicalSGMCMC,
    ReplicaExchange,
)
from pyro_aeb.transitions.joined_state import join_state


@dataclass(frozen=True, init=False)
class WrongThermostat(SGNHT):
    """Decreases the friction if the momentum is too hot."""

    def __init__(self, step_size=0.05, friction=0.1, coupling=0.01):
        super().__init__(step_size, friction, abs(coupling))
        object.__setattr__(self, "coupling", -abs(coupling))


@dataclass(frozen=True, init=False)
class SummingThermostat(SGNHT):
    """Uses the sum of squares in place of the mean: cools more with more weights."""

    def step(self, state, gradient, noise, numbers):
        eta, tau = numbers
        after = super().step(state, gradient, noise, numbers)
        excess = after.momentum.square().sum(-1, keepdim=True) * (tau / eta) - 1.0
        return after._replace(friction=state.friction + self.coupling * excess)


@dataclass(frozen=True, init=False)
class EulerNoise(BAOAB):
    """Combines the noise of an Euler step, 2 alpha, with an exponential friction."""

    def step(self, state, gradient, noise, numbers):
        eta, tau = numbers
        momentum = state.momentum + eta * gradient
        position = state.position + momentum / 2
        kept = math.exp(-self.friction)
        momentum = kept * momentum + math.sqrt(2 * self.friction * eta / tau) * noise
        return BAOABState(position + momentum / 2, momentum)


@dataclass(frozen=True, init=False)
class HalfKick(BAOAB):
    """Makes only the first half of the kick."""

    def step(self, state, gradient, noise, numbers):
        return super().step(state, gradient / 2, noise, numbers)


@dataclass(frozen=True, init=False)
class PlainNoise(PSGLD):
    """Preconditions the gradient but not the noise."""

    def move(self, state, evaluated, noise, numbers, target):
        after = super().move(state, evaluated, torch.zeros_like(noise), numbers, target)
        epsilon, tau = numbers
        return after._replace(position=after.position + math.sqrt(2 * epsilon / tau) * noise)


@dataclass(frozen=True, init=False)
class WrongCorrectionSign(PSGLD):
    """Adds the correction in place of subtracting it."""

    def move(self, state, evaluated, noise, numbers, target):
        corrected = super().move(state, evaluated, noise, numbers, target)
        plain = PSGLD(self.step_size, self.decay, self.damping)
        size = state.position.shape[-1]
        without = plain.move(plain.init(state.position)._replace(square=state.square), evaluated,
                             noise[..., :size], numbers, target)  # fmt: skip
        return corrected._replace(position=2 * without.position - corrected.position)


@dataclass(frozen=True, init=False)
class NoFinalNoise(CyclicalSGMCMC):
    """Omits the noise of small steps."""

    def step(self, state, gradient, noise, numbers):
        explores = numbers.step_size <= self.threshold
        noise = torch.zeros_like(noise) if explores else noise
        return self.inner.step(state, gradient, noise, numbers)


@dataclass(frozen=True, init=False)
class PriorInBatchOnly(SVRG):
    """Includes the prior in the batch's gradient but not in the anchor's."""

    def move(self, state, evaluated, noise, numbers, target):
        off = target.batch(state.position).gradient - target.batch(state.position, False).gradient
        return super().move(
            state, evaluated._replace(gradient=evaluated.gradient - off), noise, numbers, target
        )


@dataclass(frozen=True, init=False)
class AnchorMovesAlone(SVRG):
    """Moves the anchor with the chain without updating its gradient."""

    def move(self, state, evaluated, noise, numbers, target):
        after = super().move(state, evaluated, noise, numbers, target)
        return join_state(
            "SVRGState", SGLD(0.1).init(after.position), anchor=after.position, whole=after.whole
        )


@dataclass(frozen=True, init=False)
class AlwaysSwaps(ReplicaExchange):
    """Swaps whatever the energies."""

    def move(self, state, evaluated, noise, numbers, target):
        noise = noise.clone()
        noise[..., -1] = -100.0
        cold = evaluated._replace(log_density=evaluated.log_density - 1e9)
        return super().move(state, cold, noise, numbers, _Flat(target))


class _Flat:
    """A target of constant energy."""

    def __init__(self, target):
        self._target, self.step, self.batch = target, target.step, target.batch

    def whole(self, position, prior=True):
        evaluated = self._target.whole(position, prior)
        return evaluated._replace(log_density=torch.zeros_like(evaluated.log_density))


@dataclass(frozen=True, init=False)
class SwapsByOneTemperature(ReplicaExchange):
    """Decides by one tau in place of the difference of the two."""

    def move(self, state, evaluated, noise, numbers, target):
        factor = 1.0 / (1.0 - 1.0 / self.temperature_ratio)
        return super().move(state, evaluated, noise, numbers, _Steeper(target, factor))


class _Steeper(_Flat):
    """A target with energies times a factor."""

    def __init__(self, target, factor):
        super().__init__(target)
        self._factor = factor

    def whole(self, position, prior=True):
        evaluated = self._target.whole(position, prior)
        return evaluated._replace(log_density=self._factor * evaluated.log_density)


@dataclass(frozen=True, init=False)
class WithoutWeights(ContourSGLD):
    """Reports the draws of the flattened law without weights."""

    def statistics(self, before, state, numbers, target):
        return {}


@dataclass(frozen=True, init=False)
class InverseWeights(ContourSGLD):
    """Reports the inverse weights."""

    def statistics(self, before, state, numbers, target):
        return {"log_weight": -super().statistics(before, state, numbers, target)["log_weight"]}


@dataclass(frozen=True, init=False)
class NoDecision(HMC):
    """Accepts every trajectory."""

    def move(self, state, evaluated, noise, numbers, target):
        noise = noise.clone()
        noise[..., -1] = -torch.inf
        return super().move(state, evaluated, noise, numbers, target)


@dataclass(frozen=True, init=False)
class UnitMomenta(HMC):
    """Draws momenta of temperature 1, whatever tau is."""

    def move(self, state, evaluated, noise, numbers, target):
        factor = math.sqrt(numbers.inverse_temperature)
        noise = torch.cat([factor * noise[..., :-1], noise[..., -1:]], -1)
        return super().move(state, evaluated, noise, numbers, target)


@dataclass(frozen=True, init=False)
class GradientInPlace(SVRG):
    """Changes its gradient in place."""

    def move(self, state, evaluated, noise, numbers, target):
        evaluated.gradient.mul_(1.0)
        evaluated.gradient.add_(1e-3)
        return super().move(state, evaluated, noise, numbers, target)


@dataclass(frozen=True, init=False)
class CentredMomenta(HMC):
    """Subtracts the mean of the momenta over chains and weights."""

    def move(self, state, evaluated, noise, numbers, target):
        return super().move(state, evaluated, noise - noise.mean(), numbers, target)


@dataclass(frozen=True, init=False)
class HiddenState(ContourSGLD):
    """Keeps its learned shares outside of its state."""

    def move(self, state, evaluated, noise, numbers, target):
        shares = vars(self).setdefault("shares", state.shares)
        after = super().move(state._replace(shares=shares), evaluated, noise, numbers, target)
        vars(self)["shares"] = after.shares
        return after


CYCLES = Cyclical(1.0, period=20)

# Each with a pattern of its error.
WRONG = {
    WrongThermostat(0.05): "simulated law, tau",
    SummingThermostat(0.05): "simulated law, tau",
    EulerNoise(0.05, 1.0): "2.313 times the variance it should have at every temperature",
    HalfKick(0.05): "2 times the variance it should have at every temperature",
    PlainNoise(0.05, adapt_until=100): "simulated law, tau",
    WrongCorrectionSign(0.05, correction=True): "simulated law, tau",
    NoFinalNoise(SGLD(CYCLES)): "look at the noise: does the step use it",
    PriorInBatchOnly(SGLD(0.05), every=1): "1.333 times the target's as steps shrink",
    AnchorMovesAlone(SGLD(0.05), every=100): "simulated law, tau",
    AlwaysSwaps(SGLD(0.05), swap_every=2): "simulated law, tau",
    WithoutWeights(0.05, (0.0, 60.0), 30, weight=0.02): "simulated law, tau",
    InverseWeights(0.05, (0.0, 60.0), 30, weight=0.02): "simulated law, tau",
    UnitMomenta(0.05, 5): "simulated law, tau",
    # Mistakes of any transition with `move`.
    GradientInPlace(SGLD(0.05), every=5): r"\['gradient'\] changed",
    CentredMomenta(0.05, 5): "between chain . of 3 and alone",
    HiddenState(0.05, (0.0, 60.0), 30): "the same step twice|of 3 and alone|shapes",
}

# Mistakes below the default tolerance of the simulation, or invisible at its small steps, each with
# the right transition and options that distinguish the two.
HIDDEN = {
    "swaps": (
        ReplicaExchange(SGLD(0.05), 1.5, swap_every=1),
        SwapsByOneTemperature(SGLD(0.05), 1.5, swap_every=1),
        {"tolerance": 0.05},
    ),
    "trajectories": (HMC(0.05, 3), NoDecision(0.05, 3), {"step_size": 1.0}),
}
