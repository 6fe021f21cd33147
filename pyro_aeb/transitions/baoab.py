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

from pyro_aeb.schedules import Schedule, add_scaled, add_scaled_, as_step_size, square_root
from pyro_aeb.transitions.base import (
    StepNumbers,
    kinetic_temperature,
)
from pyro_aeb.validation import number, set_fields


class BAOABState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor momentum: displacement of a step, before the second half of the last kick; shape
        (..., D).
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

    In [1] a step begins and ends with half a kick. The half kicks at the end of a step and at the
    beginning of the next are at the same position, and are joined into one; only the very first
    kick is whole where it would be half. The positions are thus those of BAOAB, with one gradient a
    step, and the state holds the momentum before the last half kick.

    *Stationary law.* With an exact gradient it is exact on a Gaussian at any stable step size,
    :math:`\eta h < 4` for curvature h; elsewhere its error is of order :math:`\eta`, and
    :math:`\eta^2` for large friction. The noise of a minibatch's gradient is not corrected: with
    variance g it widens the variance by a share :math:`\eta \tau g / (4 \tanh(\alpha / 2))`, about
    :math:`\eta \tau g / 2 \alpha`.

    At the same law, a step of size :math:`\eta` moves as far as a step of
    :class:`~pyro_aeb.transitions.sgld.SGLD` of size :math:`\eta / (2 \tanh(\alpha / 2))`, about
    :math:`\eta / \alpha`.

    :param step_size: :math:`\eta_k`, the squared time of a step; a number or a schedule. It
        multiplies the gradient of the log posterior of the whole data set (a sum over the N data).
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
        friction = number("BAOAB: friction", friction, "(0, inf]", "a step keeps exp(-friction)")
        set_fields(self, step_size=as_step_size(step_size), friction=friction)

    def init(self, position: Tensor) -> BAOABState:
        """Return the state at rest at ``position``, shape (..., D)."""
        return BAOABState(position, torch.zeros_like(position))

    def step(
        self, state: BAOABState, gradient: Tensor, noise: Tensor, numbers: StepNumbers
    ) -> BAOABState:
        """Step by B, A, O, A; see :meth:`pyro_aeb.transitions.base.Transition.step`."""
        eta, tau = numbers
        kept = math.exp(-self.friction)
        momentum = add_scaled(state.momentum, gradient, eta)
        position = torch.add(state.position, momentum, alpha=0.5)
        spread = square_root((1.0 - kept * kept) * eta / tau)
        add_scaled_(momentum.mul_(kept), noise, spread)
        return BAOABState(position.add_(momentum, alpha=0.5), momentum)

    def statistics(
        self, before: BAOABState, after: BAOABState, numbers: StepNumbers
    ) -> Mapping[str, Tensor]:
        r"""
        Return ``kinetic_temperature``: the mean square of the momentum over :math:`\eta / \tau`,
        its stationary value on a Gaussian at any stable step size. Gradient noise raises it above
        1.
        """
        eta, tau = numbers
        return {
            "kinetic_temperature": kinetic_temperature(after.momentum, before.position, eta / tau)
        }
