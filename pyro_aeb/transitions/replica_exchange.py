# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Replica exchange at two temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target, Transition
from pyro_aeb.transitions.joined_state import held_of, inner_state, joined
from pyro_aeb.validation import choice, count, gradient_transition, number, positive, set_fields

Energies = Literal["whole", "batch"]
"""Of which data the energies are that decide on a swap."""

SMOOTHING = 0.1
"""The weight of the newest in the running estimate of the energies' variance."""


@dataclass(frozen=True)
class ReplicaExchange:
    r"""
    Two replicas of any transition, one at the target's temperature and one at a higher one, that
    change places [1]. The hot one crosses between modes and hands over what it finds; the draws are
    the cold one's.

    Every m steps the positions are swapped with probability

    .. math::
        \min(1, \exp(\delta\, (\hat Q(\beta_\mathrm{hot}) - \hat Q(\beta_\mathrm{cold}))
            - \delta^2 s^2 / 2)), \qquad \delta = \tau - \tau / r,

    which leaves :math:`\exp(\tau Q(\beta_\mathrm{cold}) + (\tau / r)\, Q(\beta_\mathrm{hot}))` as
    it is. With ``energies="whole"``, Q is of all data and :math:`s^2 = 0`: exact, at the cost of
    two gradients of all data a swap. With ``energies="batch"``, both are estimated from the data of
    the step, at no cost; :math:`s^2` is the variance of the error of their difference, and with it
    the swap is exact as well if that error is normal [2]. Without it, swaps would be too many, and
    the cold chain too hot. It is estimated along the way as in [1], from the difference between the
    batch and all data at every ``variance_every``-th swap. Where :math:`\delta^2 s^2` is far above
    1 there are no swaps to speak of: then use a smaller r or a larger batch.

    Momenta stay where they are: their law depends on the temperature alone. Latents are learned
    from the cold replica, and pruning chooses by it; where it holds weights at zero, it does so in
    both. A step takes two gradients.

    :param inner: the transition of both.
    :param float temperature_ratio: r > 1, how many times hotter the second replica is. A rate of
        swaps (``swap_rate`` in ``sample_stats``) of a few percent is enough; where it is next to
        nothing, lower r.
    :param float step_size_ratio: the hot step size over the cold one's.
    :param int swap_every: m, steps from one swap to the next.
    :param str energies: ``"whole"`` or ``"batch"``.
    :param int variance_every: with ``"batch"``, swaps from one estimate of the variance to the
        next; each costs two gradients of all data.

    **References**

    [1] Wei Deng, Qi Feng, Liyao Gao, Faming Liang, Guang Lin (2020), "Non-convex learning via
        replica exchange stochastic gradient MCMC", ICML, algorithm 1. (Their variance is of one
        energy, half of that of a difference of independent ones.)

    [2] David Ceperley, Mark Dewing (1999), "The penalty method for random walks with uncertain
        energies", Journal of Chemical Physics.
    """

    inner: Transition[Any]
    temperature_ratio: float = 4.0
    step_size_ratio: float = 1.0
    swap_every: int = 10
    energies: Energies = "whole"
    variance_every: int = 10

    def __post_init__(self) -> None:
        ratio = "hot over cold"
        meanings = ("those of all data", "estimates from the data of the step")
        set_fields(
            self,
            inner=gradient_transition("ReplicaExchange: inner", self.inner),
            temperature_ratio=number(
                "ReplicaExchange: temperature_ratio", self.temperature_ratio, "(1, inf)", ratio
            ),
            step_size_ratio=positive(
                "ReplicaExchange: step_size_ratio", self.step_size_ratio, ratio
            ),
            swap_every=count(
                "ReplicaExchange: swap_every", self.swap_every, "the steps between swaps"
            ),
            energies=choice("ReplicaExchange: energies", self.energies, Energies, *meanings),
            variance_every=count(
                "ReplicaExchange: variance_every",
                self.variance_every,
                "the swaps between estimates",
            ),
        )

    @property
    def step_size(self) -> Schedule:
        """That of the cold replica."""
        return self.inner.step_size

    def init(self, position: Tensor) -> Any:
        """
        The inner transition's state twice, both at ``position``: the fields of the hot one begin
        with ``hot_``. Beside them, of shape (..., 1), ``swap_rate``, the mean probability of all
        swaps so far, and ``variance``, :math:`s^2`.

        :param Tensor position: flat weights, shape (..., D).
        """
        cold, hot = self.inner.init(position), self.inner.init(position.clone())
        zero = torch.zeros_like(position[..., :1])
        return _state(cold, hot, zero, zero.clone())

    def noise_size(self, size: int) -> int:
        """Those of both replicas, and one number that decides."""
        return 2 * size + 1

    def move(
        self, state: Any, here: Evaluated, noise: Tensor, numbers: StepNumbers, target: Target
    ) -> Any:
        """
        A swap, if it is time, and a step of both replicas; see
        :meth:`pyro_aeb.transitions.base.TargetTransition.move`.
        """
        size = state.position.shape[-1]
        cold, hot = inner_state(state), _hot(state)
        there = target.batch(hot.position)
        positions, gradients = (cold.position, hot.position), (here.gradient, there.gradient)
        rate, variance = state.swap_rate, state.variance
        if target.step % self.swap_every == 0:
            number = target.step // self.swap_every
            gain, variance = self._gain(positions, here, there, variance, number, target)
            inverse = numbers.inverse_temperature
            log_ratio = log_swap(gain, inverse - inverse / self.temperature_ratio, variance)
            swapped = torch.special.log_ndtr(noise[..., 2 * size :]) < log_ratio
            positions, gradients = _exchanged(swapped, *positions), _exchanged(swapped, *gradients)
            rate = rate + (log_ratio.exp() - rate) / number
        hotter = StepNumbers(
            numbers.step_size * self.step_size_ratio,
            numbers.inverse_temperature / self.temperature_ratio,
        )
        cold, hot = (
            own._replace(position=p) for own, p in zip((cold, hot), positions, strict=True)
        )
        cold = self.inner.step(cold, gradients[0], noise[..., :size], numbers)
        hot = self.inner.step(hot, gradients[1], noise[..., size : 2 * size], hotter)
        return _state(cold, hot, rate, variance)

    def _gain(
        self,
        positions: tuple[Tensor, Tensor],
        here: Evaluated,
        there: Evaluated,
        variance: Tensor,
        number: int,
        target: Target,
    ) -> tuple[Tensor, Tensor]:
        """Q of the hot position less that of the cold one, and the variance of its error."""
        batch = (there.log_density - here.log_density).unsqueeze(-1)
        if self.energies == "batch" and (number - 1) % self.variance_every:
            return batch, variance
        cold, hot = (target.whole(position).log_density for position in positions)
        whole = (hot - cold).unsqueeze(-1)
        if self.energies == "whole":
            return whole, variance
        weight = max(SMOOTHING, 1.0 / (1 + (number - 1) // self.variance_every))
        return batch, variance + weight * ((batch - whole).square() - variance)

    def statistics(
        self, before: Any, state: Any, numbers: StepNumbers, target: Target
    ) -> Mapping[str, Tensor]:
        """
        ``swap_rate``, the mean probability of the swaps so far.

        :param before: the state before a step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        :param Target target: of the step.
        """
        return {"swap_rate": state.swap_rate[..., 0]}


def log_swap(gain: Tensor, delta: float, variance: Tensor) -> Tensor:
    r"""
    The logarithm of the probability of a swap.

    :param Tensor gain: Q of the hot position less that of the cold one, or an estimate.
    :param float delta: the difference of inverse temperatures, cold less hot.
    :param Tensor variance: :math:`s^2`, that of the estimate's error.
    """
    return (delta * gain - 0.5 * delta**2 * variance).clamp_max(0.0)


def _exchanged(swapped: Tensor, cold: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(swapped, hot, cold), torch.where(swapped, cold, hot)


def _state(cold: Any, hot: Any, rate: Tensor, variance: Tensor) -> Any:
    held = tuple(f"hot_{name}" for name in ("position", *held_of(type(hot))))
    own = {f"hot_{name}": value for name, value in hot._asdict().items()}
    own |= {"swap_rate": rate, "variance": variance}
    return joined("ReplicaExchangeState", cold, held, **own)


def _hot(state: Any) -> Any:
    kind = type(state).inner
    return kind(*(getattr(state, f"hot_{name}") for name in kind._fields))
