# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The package's own samplers, each with one mistake in what makes it another one than SGLD."""

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
from pyro_aeb.transitions.joined_state import joined


@dataclass(frozen=True, init=False)
class WrongThermostat(SGNHT):
    """Its friction falls where the momentum is too hot."""

    def __init__(self, step_size=0.05, friction=0.1, coupling=0.01):
        super().__init__(step_size, friction, abs(coupling))
        object.__setattr__(self, "coupling", -abs(coupling))


@dataclass(frozen=True, init=False)
class ThermostatOfSums(SGNHT):
    """Takes the sum of squares where the mean belongs: cools the more, the more weights."""

    def step(self, state, gradient, noise, numbers):
        eta, tau = numbers
        after = super().step(state, gradient, noise, numbers)
        excess = after.momentum.square().sum(-1, keepdim=True) * (tau / eta) - 1.0
        return after._replace(friction=state.friction + self.coupling * excess)


@dataclass(frozen=True, init=False)
class EulerNoise(BAOAB):
    """The noise of an Euler step, 2 alpha, with a friction that is exponential."""

    def step(self, state, gradient, noise, numbers):
        eta, tau = numbers
        momentum = state.momentum + eta * gradient
        position = state.position + momentum / 2
        kept = math.exp(-self.friction)
        momentum = kept * momentum + math.sqrt(2 * self.friction * eta / tau) * noise
        return BAOABState(position + momentum / 2, momentum)


@dataclass(frozen=True, init=False)
class HalfAKick(BAOAB):
    """The first half of the kick, and not the last half of the step before."""

    def step(self, state, gradient, noise, numbers):
        return super().step(state, gradient / 2, noise, numbers)


@dataclass(frozen=True, init=False)
class PlainNoise(PSGLD):
    """Preconditions the gradient and not the noise."""

    def move(self, state, here, noise, numbers, target):
        after = super().move(state, here, torch.zeros_like(noise), numbers, target)
        epsilon, tau = numbers
        return after._replace(position=after.position + math.sqrt(2 * epsilon / tau) * noise)


@dataclass(frozen=True, init=False)
class CorrectionOfWrongSign(PSGLD):
    """Adds the correction where it is taken off."""

    def move(self, state, here, noise, numbers, target):
        right = super().move(state, here, noise, numbers, target)
        plain = PSGLD(self.step_size, self.decay, self.damping)
        size = state.position.shape[-1]
        without = plain.move(plain.init(state.position)._replace(square=state.square), here,
                             noise[..., :size], numbers, target)  # fmt: skip
        return right._replace(position=2 * without.position - right.position)


@dataclass(frozen=True, init=False)
class ExploresLast(CyclicalSGMCMC):
    """Leaves the noise out where steps are small."""

    def step(self, state, gradient, noise, numbers):
        explores = numbers.step_size <= self.threshold
        noise = torch.zeros_like(noise) if explores else noise
        return self.inner.step(state, gradient, noise, numbers)


@dataclass(frozen=True, init=False)
class PriorOnce(SVRG):
    """The anchor's gradient of all data is without the prior, and that of the batch with it."""

    def move(self, state, here, noise, numbers, target):
        off = target.batch(state.position).gradient - target.batch(state.position, False).gradient
        return super().move(
            state, here._replace(gradient=here.gradient - off), noise, numbers, target
        )


@dataclass(frozen=True, init=False)
class AnchorMovesAlone(SVRG):
    """The anchor goes along with the chain, and its gradient of all data stays behind."""

    def move(self, state, here, noise, numbers, target):
        after = super().move(state, here, noise, numbers, target)
        return joined(
            "SVRGState", SGLD(0.1).init(after.position), anchor=after.position, whole=after.whole
        )


@dataclass(frozen=True, init=False)
class AlwaysSwaps(ReplicaExchange):
    """Swaps whatever the energies are."""

    def move(self, state, here, noise, numbers, target):
        noise = noise.clone()
        noise[..., -1] = -100.0
        cold = here._replace(log_density=here.log_density - 1e9)
        return super().move(state, cold, noise, numbers, _Flat(target))


class _Flat:
    """Energies that are the same everywhere."""

    def __init__(self, target):
        self._target, self.step, self.batch = target, target.step, target.batch

    def whole(self, position, prior=True):
        found = self._target.whole(position, prior)
        return found._replace(log_density=torch.zeros_like(found.log_density))


@dataclass(frozen=True, init=False)
class SwapsAtOneTemperature(ReplicaExchange):
    """Decides by tau in the place of the difference of the two."""

    def move(self, state, here, noise, numbers, target):
        factor = 1.0 / (1.0 - 1.0 / self.temperature_ratio)
        return super().move(state, here, noise, numbers, _Steeper(target, factor))


class _Steeper(_Flat):
    """Energies times a factor."""

    def __init__(self, target, factor):
        super().__init__(target)
        self._factor = factor

    def whole(self, position, prior=True):
        found = self._target.whole(position, prior)
        return found._replace(log_density=self._factor * found.log_density)


@dataclass(frozen=True, init=False)
class WithoutWeights(ContourSGLD):
    """Gives out the draws of the flattened law as if they were the target's."""

    def statistics(self, before, state, numbers, target):
        return {}


@dataclass(frozen=True, init=False)
class WeightsUpsideDown(ContourSGLD):
    def statistics(self, before, state, numbers, target):
        return {"log_weight": -super().statistics(before, state, numbers, target)["log_weight"]}


@dataclass(frozen=True, init=False)
class NoDecision(HMC):
    """Takes every trajectory."""

    def move(self, state, here, noise, numbers, target):
        noise = noise.clone()
        noise[..., -1] = -torch.inf
        return super().move(state, here, noise, numbers, target)


@dataclass(frozen=True, init=False)
class MomentaOfOneTemperature(HMC):
    """Momenta of temperature 1, whatever tau is."""

    def move(self, state, here, noise, numbers, target):
        factor = math.sqrt(numbers.inverse_temperature)
        noise = torch.cat([factor * noise[..., :-1], noise[..., -1:]], -1)
        return super().move(state, here, noise, numbers, target)


@dataclass(frozen=True, init=False)
class GradientInPlace(SVRG):
    """Writes to the gradient that it is given."""

    def move(self, state, here, noise, numbers, target):
        here.gradient.mul_(1.0)
        here.gradient.add_(1e-3)
        return super().move(state, here, noise, numbers, target)


@dataclass(frozen=True, init=False)
class CentredMomenta(HMC):
    """Takes the mean off momenta, over chains and weights alike."""

    def move(self, state, here, noise, numbers, target):
        return super().move(state, here, noise - noise.mean(), numbers, target)


@dataclass(frozen=True, init=False)
class CountsInItself(ContourSGLD):
    """Its shares are learned outside of its state."""

    def move(self, state, here, noise, numbers, target):
        shares = vars(self).setdefault("shares", state.shares)
        after = super().move(state._replace(shares=shares), here, noise, numbers, target)
        vars(self)["shares"] = after.shares
        return after


CYCLES = Cyclical(1.0, period=20)

# Each with the words that it is told in.
WRONG = {
    WrongThermostat(0.05): "simulated law, tau",
    ThermostatOfSums(0.05): "simulated law, tau",
    EulerNoise(0.05, 1.0): "2.313 times the variance it should have at every temperature",
    HalfAKick(0.05): "2 times the variance it should have at every temperature",
    PlainNoise(0.05, adapt_until=100): "simulated law, tau",
    CorrectionOfWrongSign(0.05, correction=True): "simulated law, tau",
    ExploresLast(SGLD(CYCLES)): "look at the noise: does the step use it",
    PriorOnce(SGLD(0.05), every=1): "1.333 times the target's as steps shrink",
    AnchorMovesAlone(SGLD(0.05), every=100): "simulated law, tau",
    AlwaysSwaps(SGLD(0.05), swap_every=2): "simulated law, tau",
    WithoutWeights(0.05, (0.0, 60.0), 30, weight=0.02): "simulated law, tau",
    WeightsUpsideDown(0.05, (0.0, 60.0), 30, weight=0.02): "simulated law, tau",
    MomentaOfOneTemperature(0.05, 5): "simulated law, tau",
    # What any transition with `move` may do wrong.
    GradientInPlace(SGLD(0.05), every=5): r"\['gradient'\] changed",
    CentredMomenta(0.05, 5): "between chain . of 3 and alone",
    CountsInItself(0.05, (0.0, 60.0), 30): "the same step twice|of 3 and alone|shapes",
}

# Mistakes that are smaller than the simulation's usual tolerance, or hide at its small steps, each
# beside the right one, and with what tells them apart.
HIDDEN = {
    "swaps": (
        ReplicaExchange(SGLD(0.05), 1.5, swap_every=1),
        SwapsAtOneTemperature(SGLD(0.05), 1.5, swap_every=1),
        {"tolerance": 0.05},
    ),
    "trajectories": (HMC(0.05, 3), NoDecision(0.05, 3), {"step_size": 1.0}),
}
