# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The Langevin integrator BAOAB."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, as_schedule
from pyro_aeb.transitions.base import StepNumbers, kinetic_temperature
from pyro_aeb.validation import number, set_fields


class BAOABState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor momentum: as a displacement of a step, before the second half of the last kick;
        shape (..., D).
    """

    position: Tensor
    momentum: Tensor


@dataclass(frozen=True)
class BAOAB:
    r"""
    Langevin dynamics by the splitting BAOAB [1]: kick, drift, exact Ornstein-Uhlenbeck step of the
    momentum, drift.

    .. math::
        v &\leftarrow v + \eta_k \nabla_\beta Q &\quad& \text{(B)} \\
        \beta &\leftarrow \beta + v / 2 && \text{(A)} \\
        v &\leftarrow e^{-\alpha} v + N(0, (1 - e^{-2 \alpha})\, \eta_k / \tau) && \text{(O)} \\
        \beta &\leftarrow \beta + v / 2 && \text{(A)}

    As published a step begins and ends with half a kick. Half a kick at the end of a step and half
    a kick at the beginning of the next one are at the same position, by the same gradient: they are
    one kick, and only the first of all is whole here where it would be half. So the positions are
    those of BAOAB, with one gradient a step; the momentum in the state is the one before the last
    half kick.

    With an exact gradient the positions of a Gaussian have its law at any stable step size,
    :math:`\eta h < 4` for curvature h; elsewhere their law is off by the order of :math:`\eta`, and
    by :math:`\eta^2` as the friction grows. Noise of a minibatch's gradient is not made up for: at
    variance g the law is too wide by a share :math:`\eta \tau g / (4 \tanh(\alpha / 2))`, about
    :math:`\eta \tau g / 2 \alpha`, of the variance.

    At the same law, a step of size :math:`\eta` moves as far as a step of
    :class:`~pyro_aeb.transitions.sgld.SGLD` of size :math:`\eta / (2 \tanh(\alpha / 2))`, about
    :math:`\eta / \alpha`.

    :param step_size: :math:`\eta_k`, the square of the time that a step takes; a number or a
        schedule. It multiplies the gradient of the log posterior of the whole data set (a sum over
        the N data).
    :param float friction: :math:`\alpha > 0`, friction times the time of a step: a step keeps the
        share :math:`e^{-\alpha}` of the momentum. ``math.inf`` keeps none, which is the method of
        [2] with steps of :math:`\eta / 2`.

    **References**

    [1] Benedict Leimkuhler, Charles Matthews (2013), "Rational construction of stochastic numerical
        methods for molecular sampling", Applied Mathematics Research eXpress.

    [2] Benedict Leimkuhler, Charles Matthews, Michael Tretyakov (2014), "On the long-time
        integration of stochastic gradient systems", Proceedings of the Royal Society A.
    """

    step_size: Schedule
    friction: float = 0.1

    def __init__(self, step_size: Schedule | float, friction: float = 0.1) -> None:
        set_fields(
            self,
            step_size=as_schedule(step_size, "step_size"),
            friction=number(
                "BAOAB: friction",
                friction,
                "(0, inf]",
                "a step keeps exp(-friction) of the momentum",
            ),
        )

    def init(self, position: Tensor) -> BAOABState:
        """The state at rest at ``position``, shape (..., D)."""
        return BAOABState(position, torch.zeros_like(position))

    def step(
        self, state: BAOABState, gradient: Tensor, noise: Tensor, numbers: StepNumbers
    ) -> BAOABState:
        """B, A, O, A; see :meth:`pyro_aeb.transitions.base.Transition.step`."""
        eta, tau = numbers
        kept = math.exp(-self.friction)
        momentum = torch.add(state.momentum, gradient, alpha=eta)
        position = torch.add(state.position, momentum, alpha=0.5)
        momentum.mul_(kept).add_(noise, alpha=math.sqrt((1.0 - kept * kept) * eta / tau))
        return BAOABState(position.add_(momentum, alpha=0.5), momentum)

    def statistics(
        self, before: BAOABState, state: BAOABState, numbers: StepNumbers
    ) -> Mapping[str, Tensor]:
        r"""
        ``kinetic_temperature``: the mean square of the momentum over :math:`\eta / \tau`, which is
        its stationary value on a Gaussian at any stable step size. Above 1 there is noise in the
        gradient.

        :param before: the state before a step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        """
        eta, tau = numbers
        return {
            "kinetic_temperature": kinetic_temperature(state.momentum, before.position, eta / tau)
        }
