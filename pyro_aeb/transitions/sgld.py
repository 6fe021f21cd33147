# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Stochastic-gradient Langevin dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pyro_aeb.schedules import Schedule, add_scaled, add_scaled_, as_step_size, square_root
from pyro_aeb.transitions.base import (
    StepNumbers,
    kinetic_temperature,
)
from pyro_aeb.validation import set_fields


class SGLDState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    """

    position: Tensor


@dataclass(frozen=True)
class SGLD:
    r"""
    Stochastic-gradient Langevin dynamics, equation (3a):

    .. math:: \beta \leftarrow \beta + \epsilon_k \nabla_\beta Q + N(0, 2 \epsilon_k / \tau).

    *Stationary law.* For a quadratic Q of curvature h and constant :math:`\epsilon` its variance is
    :math:`1 / (\tau h (1 - \epsilon h / 2))`: keep :math:`\epsilon h` well below 1 for the largest
    curvature.

    :param step_size: :math:`\epsilon_k`, a number or a schedule. It multiplies the gradient of the
        log posterior of the whole data set (a sum over the N data).

    **References**

    [1] Max Welling, Yee Whye Teh (2011), "Bayesian learning via stochastic gradient Langevin
        dynamics", ICML. (Their step size is twice this one.)
    """

    step_size: Schedule

    def __init__(self, step_size: Schedule | float) -> None:
        set_fields(self, step_size=as_step_size(step_size))

    def init(self, position: Tensor) -> SGLDState:
        """Return the state at ``position``, shape (..., D)."""
        return SGLDState(position)

    def step(
        self, state: SGLDState, gradient: Tensor, noise: Tensor, numbers: StepNumbers
    ) -> SGLDState:
        """Step by equation (3a); see :meth:`pyro_aeb.transitions.base.Transition.step`."""
        epsilon, tau = numbers
        position = add_scaled(state.position, gradient, epsilon)
        return SGLDState(add_scaled_(position, noise, square_root(2.0 * epsilon / tau)))

    def statistics(
        self, before: SGLDState, after: SGLDState, numbers: StepNumbers
    ) -> Mapping[str, Tensor]:
        r"""
        Return ``kinetic_temperature``: the mean square of the step over :math:`2 \epsilon / \tau`,
        that of its noise alone.

        At curvature h, with noise of variance g in the gradient, its stationary value for a
        quadratic Q is :math:`(1 + \epsilon \tau g / 2) / (1 - \epsilon h / 2)`, which is also the
        factor by which the weights' variance is too large: a number above 1 shows noise of the
        gradient, or a large step.
        """
        epsilon, tau = numbers
        step = after.position - before.position
        measured = kinetic_temperature(step, before.position, 2.0 * epsilon / tau)
        return {"kinetic_temperature": measured}
