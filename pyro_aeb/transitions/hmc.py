# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Hamiltonian Monte Carlo with the gradient of all data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, as_schedule
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target
from pyro_aeb.validation import count, set_fields


class HMCState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor acceptance: the probability with which the last trajectory was accepted, one
        number a chain, shape (..., 1); 1 before the first.
    """

    position: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class HMC:
    r"""
    Hamiltonian Monte Carlo [1] with the gradient of all data: the reference that has no bias. A
    step is a trajectory of L leapfrogs from a fresh momentum of law :math:`N(0, \eta / \tau)`,

    .. math::
        v \leftarrow v + \tfrac{\eta}{2} \nabla Q, \quad \beta \leftarrow \beta + v, \quad
        v \leftarrow v + \tfrac{\eta}{2} \nabla Q,

    which is accepted with probability :math:`\min(1, \exp(\tau \Delta Q - \tau \Delta |v|^2 / 2
    \eta))`. At fixed latents :math:`\exp(\tau Q)` is its law exactly, at any step size; a step that
    is too large shows in ``acceptance_rate``, about 0.65 to 0.9 being good. The latents move as
    with any transition, by the statistics of the step's own batch; run it with all data in the
    batch (no ``subsample_size``) and all of a run is exact but for their moving.

    With pruning it is not exact: the decision is about a trajectory in which the weights that
    pruning then sets to zero have moved with the others.

    A step takes L + 1 gradients of all data, and the one of the batch that every step takes.

    *Rounding.* Log densities of N data in single precision are off by about :math:`10^{-7} |Q|`.
    The decision takes their difference in double precision, so nothing is added to that; and as
    they are the same at every visit of a position, what is sampled is :math:`\exp(\tau Q)` with Q
    as it is rounded, its density off by a factor of :math:`1 \pm 10^{-7} \tau |Q|`, and nothing
    accumulates. Beyond :math:`\tau |Q| = 10^6` use float64.

    :param step_size: :math:`\eta_k`, the square of the leapfrog's step; a number or a schedule. It
        multiplies the gradient of the log posterior of the whole data set (a sum over the N data).
        On a Gaussian of curvature h a trajectory is stable for :math:`\eta h < 4`.
    :param int leapfrogs: L, so a trajectory takes the time :math:`L \sqrt{\eta}`; a quarter of the
        slowest direction's period, :math:`\pi / 2 \sqrt{h}`, is a good length.

    **References**

    [1] Simon Duane, Anthony Kennedy, Brian Pendleton, Duncan Roweth (1987), "Hybrid Monte Carlo",
        Physics Letters B; Radford Neal (2011), "MCMC using Hamiltonian dynamics", Handbook of
        Markov chain Monte Carlo, chapter 5.
    """

    step_size: Schedule
    leapfrogs: int = 10

    def __init__(self, step_size: Schedule | float, leapfrogs: int = 10) -> None:
        set_fields(
            self,
            step_size=as_schedule(step_size, "step_size"),
            leapfrogs=count("HMC: leapfrogs", leapfrogs, "the leapfrogs of a trajectory"),
        )

    def init(self, position: Tensor) -> HMCState:
        """The state at ``position``, shape (..., D)."""
        return HMCState(position, torch.ones_like(position[..., :1]))

    def noise_size(self, size: int) -> int:
        """A momentum for every weight, and one number that decides."""
        return size + 1

    def move(
        self,
        state: HMCState,
        here: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> HMCState:
        """
        One trajectory; see :meth:`pyro_aeb.transitions.base.TargetTransition.move`. What is not
        finite at its end is not accepted.
        """
        eta, tau = numbers
        size = state.position.shape[-1]
        momentum = math.sqrt(eta / tau) * noise[..., :size]
        start = at = target.whole(state.position)
        energy = _kinetic(momentum, eta)
        position = state.position
        for _ in range(self.leapfrogs):
            momentum = momentum + (0.5 * eta) * at.gradient
            position = position + momentum
            at = target.whole(position)
            momentum = momentum + (0.5 * eta) * at.gradient
        gain = at.log_density.double() - start.log_density.double()
        log_ratio = (tau * (gain - (_kinetic(momentum, eta) - energy))).unsqueeze(-1)
        log_ratio = torch.where(log_ratio.isnan(), -torch.inf, log_ratio).clamp_max(0.0)
        # The number that decides is normal, so its distribution function's value is uniform.
        accepted = torch.special.log_ndtr(noise[..., size:].double()) < log_ratio
        acceptance = log_ratio.exp().to(position.dtype)
        return HMCState(torch.where(accepted, position, state.position), acceptance)

    def statistics(
        self, before: HMCState, state: HMCState, numbers: StepNumbers, target: Target
    ) -> Mapping[str, Tensor]:
        """
        ``acceptance_rate``, the probability with which the last trajectory was accepted.

        :param before: the state before a step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        :param Target target: of the step.
        """
        return {"acceptance_rate": state.acceptance[..., 0]}


def _kinetic(momentum: Tensor, eta: float) -> Tensor:
    return momentum.double().square().sum(-1) / (2.0 * eta)
