# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Stochastic-gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, add_scaled_, as_step_size, square_root
from pyro_aeb.transitions.base import (
    StepNumbers,
    kinetic_temperature,
)
from pyro_aeb.validation import number, set_fields


class SGHMCState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor momentum: displacement of the last step, shape (..., D).
    """

    position: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class SGHMC:
    r"""
    Stochastic-gradient Hamiltonian Monte Carlo, equation (3b):

    .. math::
        v &\leftarrow (1 - \alpha) v + \eta_k \nabla_\beta Q
            + N(0, 2 \eta_k (\alpha - \hat\beta) / \tau) \\
        \beta &\leftarrow \beta + v.

    *Stationary law.* It tends to :math:`\exp(\tau Q)` as the step size goes to zero. At the same
    law, a step of size :math:`\eta` moves as far as a step of
    :class:`~pyro_aeb.transitions.sgld.SGLD` of size :math:`\eta / \alpha`.

    :param step_size: :math:`\eta_k`, a number or a schedule. It multiplies the gradient of the log
        posterior of the whole data set (a sum over the N data).
    :param float friction: :math:`\alpha` in (0, 1]; one minus the momentum coefficient.
    :param float gradient_noise: :math:`\hat\beta` in [0, friction], an estimate of the noise of the
        gradient, which is subtracted from the injected noise.

    **References**

    [1] Tianqi Chen, Emily Fox, Carlos Guestrin (2014), "Stochastic gradient Hamiltonian Monte
        Carlo", ICML, equation (15).

    [2] Yunus Saatci, Andrew Gordon Wilson (2017), "Bayesian GAN", NeurIPS, algorithm 1.
    """

    step_size: Schedule
    friction: float = 0.1
    gradient_noise: float = 0.0

    def __init__(
        self, step_size: Schedule | float, friction: float = 0.1, gradient_noise: float = 0.0
    ) -> None:
        advice = "friction = 1 - momentum, so a momentum of 0.9 is friction=0.1"
        friction = number("SGHMC: friction", friction, "(0, 1]", advice)
        advice = "noise has no negative variance: raise the friction or lower the estimate"
        gradient_noise = number("SGHMC: gradient_noise", gradient_noise, f"[0, {friction}]", advice)
        step_size = as_step_size(step_size)
        set_fields(self, step_size=step_size, friction=friction, gradient_noise=gradient_noise)

    def init(self, position: Tensor) -> SGHMCState:
        """Return the state at rest at ``position``, shape (..., D)."""
        return SGHMCState(position, torch.zeros_like(position))

    def step(
        self, state: SGHMCState, gradient: Tensor, noise: Tensor, numbers: StepNumbers
    ) -> SGHMCState:
        """Step by equation (3b); see :meth:`pyro_aeb.transitions.base.Transition.step`."""
        eta, tau = numbers
        momentum = add_scaled_(torch.mul(state.momentum, 1.0 - self.friction), gradient, eta)
        variance = 2.0 * eta * (self.friction - self.gradient_noise) / tau
        add_scaled_(momentum, noise, square_root(variance))
        return SGHMCState(state.position + momentum, momentum)

    def statistics(
        self, before: SGHMCState, after: SGHMCState, numbers: StepNumbers
    ) -> Mapping[str, Tensor]:
        r"""
        Return ``kinetic_temperature``: the mean square of the momentum over
        :math:`\eta / (\tau (1 - \alpha / 2))`, its stationary value for small steps.

        At curvature h, with noise of variance g in the gradient, that of the discretised scheme is

        .. math:: \frac{2 \eta (\alpha - \hat\beta) / \tau + \eta^2 g}
            {\alpha (2 - \alpha - \eta h / 2)},

        so a number above 1 shows noise of the gradient beyond :math:`\hat\beta`, or a large step.
        """
        eta, tau = numbers
        expected = eta / (tau * (1.0 - self.friction / 2.0))
        measured = kinetic_temperature(after.momentum, before.position, expected)
        return {"kinetic_temperature": measured}
