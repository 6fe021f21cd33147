# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Hamiltonian Monte Carlo with the gradient of all data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, as_step_size
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target
from pyro_aeb.validation import count, number, set_fields


class HMCState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor acceptance: probability of acceptance of the last trajectory, one number a chain,
        shape (..., 1); 1 before the first.
    """

    position: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class HMC:
    r"""
    Hamiltonian Monte Carlo [1] with the gradient of all data, a reference without bias. A step is a
    trajectory of L leapfrogs from a new momentum of law :math:`N(0, \eta / \tau)`,

    .. math::
        v \leftarrow v + s \tfrac{\eta}{2} \nabla Q, \quad \beta \leftarrow \beta + s v, \quad
        v \leftarrow v + s \tfrac{\eta}{2} \nabla Q,

    which is accepted with probability :math:`\min(1, \exp(\tau \Delta Q - \tau \Delta |v|^2 / 2
    \eta))`. A step takes L + 1 gradients of all data, and the one of the batch that every step
    takes.

    *Jitter.* The factor s is uniform on :math:`(1 - \text{jitter}, 1)`, drawn anew for every
    trajectory and chain [2, 3.2 and 5.4.2.2]. Without it a direction whose half period is the
    trajectory's length goes from x to -x at every step, and its :math:`|x|` never changes.

    *Stationary law.* At fixed latents it is :math:`\exp(\tau Q)`, exactly, at any step size and
    jitter: s is independent of the state, and for every s a step is in detailed balance. Too
    large a step lowers ``acceptance_rate``, of which 0.65 to 0.9 is good. The latents move as with
    any transition, by the statistics of the step's batch; with all data in the batch (no
    ``subsample_size``), their movement is the only error. With pruning the law is not exact: a
    trajectory is accepted or not before its weights are set to zero.

    *Rounding.* In single precision the log density of N data has an error of about
    :math:`10^{-7} |Q|`, the same at every visit of a position. Differences are taken in double
    precision. The law is therefore :math:`\exp(\tau Q)` of the rounded Q, its density off by a
    factor of :math:`1 \pm 10^{-7} \tau |Q|`, and nothing accumulates. Beyond
    :math:`\tau |Q| = 10^6` use float64.

    :param step_size: :math:`\eta_k`, the squared step of the leapfrog; a number or a schedule. It
        multiplies the gradient of the log posterior of the whole data set (a sum over the N data).
        On a Gaussian of curvature h a trajectory is stable for :math:`\eta h < 4`, and the more so
        with jitter, which only shortens steps.
    :param int leapfrogs: L; a trajectory takes the time :math:`s L \sqrt{\eta}`. A quarter of the
        slowest direction's period, :math:`\pi / 2 \sqrt{h}`, is a good :math:`L \sqrt{\eta}`.
    :param float jitter: from 0, for steps of one size, to 1. A checkpoint of version 0.1 resumes
        with 0, as it began.

    **References**

    [1] Simon Duane, Anthony Kennedy, Brian Pendleton, Duncan Roweth (1987), "Hybrid Monte Carlo",
        Physics Letters B.

    [2] Radford Neal (2011), "MCMC using Hamiltonian dynamics", Handbook of Markov chain Monte
        Carlo, chapter 5.
    """

    step_size: Schedule
    leapfrogs: int = 10
    jitter: float = 0.5
    rejects: ClassVar[bool] = True
    absent_fields: ClassVar[Mapping[str, Any]] = {"jitter": 0.0}
    """Values of options that a checkpoint does not have: version 0.1 had no jitter."""

    def __init__(
        self, step_size: Schedule | float, leapfrogs: int = 10, jitter: float = 0.5
    ) -> None:
        leapfrogs = count("HMC: leapfrogs", leapfrogs, "the leapfrogs of a trajectory")
        jitter = number("HMC: jitter", jitter, "[0, 1]")
        step = as_step_size(step_size)
        set_fields(self, step_size=step, leapfrogs=leapfrogs, jitter=jitter)

    def init(self, position: Tensor) -> HMCState:
        """Return the state at ``position``, shape (..., D)."""
        return HMCState(position, torch.ones_like(position[..., :1]))

    def noise_size(self, size: int) -> int:
        """Return the count of a momentum for every weight, s if it varies, and the decision."""
        return size + (2 if self.jitter else 1)

    def move(
        self,
        state: HMCState,
        evaluated: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> HMCState:
        """
        Step by one trajectory; see :meth:`pyro_aeb.transitions.base.TargetTransition.move`. A
        trajectory is rejected if its end is not finite, or if the model fails there, as at a matrix
        that cannot be factored.
        """
        eta, tau = numbers
        size = state.position.shape[-1]
        momentum = math.sqrt(eta / tau) * noise[..., :size]
        factor = self._factor(noise[..., size : size + 1]) if self.jitter else 1.0
        start = end = target.whole(state.position)
        energy = _kinetic(momentum, eta)
        position = state.position
        for _ in range(self.leapfrogs):
            momentum = momentum + (0.5 * eta * factor) * end.gradient
            position = position + factor * momentum
            end = target.whole(position)
            momentum = momentum + (0.5 * eta * factor) * end.gradient
        gain = end.log_density.double() - start.log_density.double()
        log_ratio = (tau * (gain - (_kinetic(momentum, eta) - energy))).unsqueeze(-1)
        log_ratio = torch.where(log_ratio.isnan(), -torch.inf, log_ratio).clamp_max(0.0)
        # The last number is normal, and its distribution function makes it uniform.
        accepted = torch.special.log_ndtr(noise[..., -1:].double()) < log_ratio
        acceptance = log_ratio.exp().to(position.dtype)
        return HMCState(torch.where(accepted, position, state.position), acceptance)

    def _factor(self, normal: Tensor) -> Tensor:
        """Return s; the distribution function of a normal number makes it uniform."""
        return (1.0 - self.jitter * torch.special.ndtr(normal.double())).to(normal.dtype)

    def statistics(
        self, before: HMCState, after: HMCState, numbers: StepNumbers, target: Target
    ) -> Mapping[str, Tensor]:
        """Return ``acceptance_rate``, the probability of acceptance of the last trajectory."""
        return {"acceptance_rate": after.acceptance[..., 0]}


def _kinetic(momentum: Tensor, eta: float) -> Tensor:
    return momentum.double().square().sum(-1) / (2.0 * eta)
