# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Replica exchange at two temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target, Transition
from pyro_aeb.transitions.joined_state import held_fields, inner_state, join_state
from pyro_aeb.validation import check_fields, choice, count, gradient_transition, number, positive

Energies = Literal["whole", "batch"]
"""The data from which the energies of a swap are computed."""

SMOOTHING = 0.1
"""Smallest weight of a new value in the moving estimate of the energies' variance."""


@dataclass(frozen=True)
class ReplicaExchange:
    r"""
    Two replicas of any transition, a cold one at the target's temperature and a hot one, that swap
    positions [1]. The hot replica crosses between modes; the draws are those of the cold one.

    Every m steps the positions are swapped with probability

    .. math::
        \min(1, \exp(\delta\, (\hat Q(\beta_\mathrm{hot}) - \hat Q(\beta_\mathrm{cold}))
            - \delta^2 s^2 / 2)), \qquad \delta = \tau - \tau / r,

    *Stationary law.* A swap preserves :math:`\exp(\tau Q(\beta_\mathrm{cold}) + (\tau / r)\,
    Q(\beta_\mathrm{hot}))`. With ``energies="whole"``, Q is that of all data and :math:`s^2 = 0`:
    exact, for two gradients of all data a swap. With ``energies="batch"``, both are estimated from
    the data of the step, without further cost; :math:`s^2` is the variance of the error of their
    difference, which makes the swap exact if that error is normal [2]. (Without it there would be
    too many swaps, and the cold chain would be too hot.) It is estimated as in [1], from the
    difference between the batch and all data at every ``variance_every``-th swap. If
    :math:`\delta^2 s^2` is far above 1, swaps are rare: use a smaller r or a larger batch.

    Momenta are not swapped: their law depends on the temperature alone. Latents are learned from
    the cold replica, and pruning selects by it; weights that it holds at zero are zero in both. A
    step takes two gradients.

    :param inner: the transition of both replicas.
    :param float temperature_ratio: r > 1, the hot temperature over the cold one. A ``swap_rate`` in
        ``sample_stats`` of a few percent is enough; if it is near zero, lower r.
    :param float step_size_ratio: the hot step size over the cold one.
    :param int swap_every: m, the steps between swaps.
    :param str energies: ``"whole"`` or ``"batch"``.
    :param int variance_every: with ``"batch"``, the swaps between estimates of the variance; each
        takes two gradients of all data.

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
        meanings = ("those of all data", "estimates from the data of the step")
        choice("ReplicaExchange: energies", self.energies, Energies, *meanings)
        check_fields(
            self,
            inner=gradient_transition,
            temperature_ratio=partial(number, within="(1, inf)", advice="hot over cold"),
            step_size_ratio=partial(positive, advice="hot over cold"),
            swap_every=partial(count, meaning="the steps between swaps"),
            variance_every=partial(count, meaning="the swaps between estimates"),
        )

    @property
    def step_size(self) -> Schedule:
        """The step size of the cold replica."""
        return self.inner.step_size

    def init(self, position: Tensor) -> Any:
        """
        Return the inner transition's state twice, both at ``position``; the fields of the hot one
        begin with ``hot_``. Further fields, of shape (..., 1), are ``swap_rate``, the mean
        probability of all swaps so far, and ``variance``, :math:`s^2`.

        :param Tensor position: flat weights, shape (..., D).
        """
        cold, hot = self.inner.init(position), self.inner.init(position.clone())
        zero = torch.zeros_like(position[..., :1])
        return _join(cold, hot, zero, zero.clone())

    def noise_size(self, size: int) -> int:
        """Return ``2 * size + 1``: those of both replicas, and one number for the decision."""
        return 2 * size + 1

    def move(
        self, state: Any, evaluated: Evaluated, noise: Tensor, numbers: StepNumbers, target: Target
    ) -> Any:
        """
        Swap the positions if it is time, and step both replicas; see
        :meth:`pyro_aeb.transitions.base.TargetTransition.move`.
        """
        size = state.position.shape[-1]
        cold, hot = inner_state(state), _hot_state(state)
        evaluated_hot = target.batch(hot.position)
        positions = (cold.position, hot.position)
        gradients = (evaluated.gradient, evaluated_hot.gradient)
        rate, variance = state.swap_rate, state.variance
        if target.step % self.swap_every == 0:
            number = target.step // self.swap_every
            gain, variance = self._gain(
                positions, evaluated, evaluated_hot, variance, number, target
            )
            inverse = numbers.inverse_temperature
            log_ratio = log_swap(gain, inverse - inverse / self.temperature_ratio, variance)
            accepted = torch.special.log_ndtr(noise[..., 2 * size :]) < log_ratio
            positions, gradients = _swap(accepted, *positions), _swap(accepted, *gradients)
            rate = rate + (log_ratio.exp() - rate) / number
        hotter = StepNumbers(
            numbers.step_size * self.step_size_ratio,
            numbers.inverse_temperature / self.temperature_ratio,
        )
        cold = cold._replace(position=positions[0])
        hot = hot._replace(position=positions[1])
        cold = self.inner.step(cold, gradients[0], noise[..., :size], numbers)
        hot = self.inner.step(hot, gradients[1], noise[..., size : 2 * size], hotter)
        return _join(cold, hot, rate, variance)

    def _gain(
        self,
        positions: tuple[Tensor, Tensor],
        cold: Evaluated,
        hot: Evaluated,
        variance: Tensor,
        number: int,
        target: Target,
    ) -> tuple[Tensor, Tensor]:
        """Return Q of the hot position minus Q of the cold one, and the variance of its error."""
        batch = (hot.log_density - cold.log_density).unsqueeze(-1)
        if self.energies == "batch" and (number - 1) % self.variance_every:
            return batch, variance
        cold_whole, hot_whole = (target.whole(position).log_density for position in positions)
        whole = (hot_whole - cold_whole).unsqueeze(-1)
        if self.energies == "whole":
            return whole, variance
        weight = max(SMOOTHING, 1.0 / (1 + (number - 1) // self.variance_every))
        return batch, variance + weight * ((batch - whole).square() - variance)

    def statistics(
        self, before: Any, after: Any, numbers: StepNumbers, target: Target
    ) -> Mapping[str, Tensor]:
        """Return ``swap_rate``, the mean probability of the swaps so far."""
        return {"swap_rate": after.swap_rate[..., 0]}


def log_swap(gain: Tensor, delta: float, variance: Tensor) -> Tensor:
    r"""
    Return the logarithm of the probability of a swap.

    :param Tensor gain: Q of the hot position minus Q of the cold one, or an estimate.
    :param float delta: difference of the inverse temperatures, cold minus hot.
    :param Tensor variance: :math:`s^2`, that of the estimate's error.
    """
    return (delta * gain - 0.5 * delta**2 * variance).clamp_max(0.0)


def _swap(accepted: Tensor, cold: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(accepted, hot, cold), torch.where(accepted, cold, hot)


def _join(cold: Any, hot: Any, rate: Tensor, variance: Tensor) -> Any:
    held = tuple(f"hot_{name}" for name in ("position", *held_fields(hot)))
    fields = {f"hot_{name}": value for name, value in hot._asdict().items()}
    fields |= {"swap_rate": rate, "variance": variance}
    return join_state("ReplicaExchangeState", cold, held, **fields)


def _hot_state(state: Any) -> Any:
    kind = type(state).inner
    return kind(*(getattr(state, f"hot_{name}") for name in kind._fields))
