# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The Langevin integrator BAOAB with a scale for every weight, which a kernel tunes in warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, as_step_size
from pyro_aeb.transitions.base import StepNumbers, kinetic_temperature
from pyro_aeb.validation import number, positive, set_fields

Auto = Literal["auto"]

FRICTION = 0.1
"""The friction until it is tuned."""


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


class TunedState(NamedTuple):
    r"""
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor momentum: in units of scale and step, with variance :math:`1 / \tau`; shape
        (..., D).
    :param Tensor scale: s, shape (..., D).
    :param Tensor step_size: a factor of the transition's step size, shape (..., 1).
    :param Tensor friction: :math:`\alpha`, shape (..., 1).
    """

    position: Tensor
    momentum: Tensor
    scale: Tensor
    step_size: Tensor
    friction: Tensor


@dataclass(frozen=True)
class TunedStepSize:
    """The schedule of a step size that tuning sets: a factor of 1 of the one in the state."""

    def __repr__(self) -> str:
        return "'auto'"

    def __call__(self, k: int) -> float:
        return 1.0


@dataclass(frozen=True)
class TunedBAOAB:
    r"""
    Langevin dynamics by the splitting BAOAB, with a scale :math:`s_i` for every weight. Step size,
    scale and friction are ``"auto"`` by default: a kernel tunes them in warm-up and then leaves
    them as they are, see :mod:`pyro_aeb.tuning`. Each can be given instead.

    .. math::
        u &\leftarrow u + \sqrt{\eta}\, s \nabla_\beta Q \\
        \beta &\leftarrow \beta + \sqrt{\eta}\, s u / 2 \\
        u &\leftarrow e^{-\alpha} u + N(0, (1 - e^{-2 \alpha}) / \tau) \\
        \beta &\leftarrow \beta + \sqrt{\eta}\, s u / 2

    With s = 1 this is :class:`~pyro_aeb.transitions.baoab.BAOAB`, with :math:`v = \sqrt{\eta} u`:
    the momentum is in units in which its variance is :math:`1 / \tau`, so that it stays right when
    step size or scale change.

    *Stationary law.* That of BAOAB with the curvature :math:`s h s`: exact on a Gaussian at any
    stable step size, and widened by the noise of minibatches, which is not corrected.

    :param step_size: :math:`\eta`, the squared time of a step: a number, a schedule, or "auto". It
        is relative to the scale: the chain is stable for :math:`\eta \lambda < 4`, where
        :math:`\lambda` is the largest curvature of the weights divided by s.
    :param friction: :math:`\alpha > 0`, friction times the time of a step; or "auto".
    :param scale: one number for all weights, or "auto": about one over the root of the curvature
        of Q along each.
    """

    step_size: Any = "auto"
    friction: float | Auto = "auto"
    scale: float | Auto = "auto"

    def __init__(
        self,
        step_size: Schedule | float | Auto = "auto",
        friction: float | Auto = "auto",
        scale: float | Auto = "auto",
    ) -> None:
        own: Any = TunedStepSize() if _is_auto(step_size) else step_size
        if not _is_auto(friction):
            friction = number("TunedBAOAB: friction", friction, "(0, inf]")
        if not _is_auto(scale):
            scale = positive("TunedBAOAB: scale", scale)
        own = as_step_size(own)
        set_fields(self, step_size=own, friction=friction, scale=scale)

    @property
    def tuned(self) -> tuple[str, ...]:
        """Names of the settings that are to be tuned."""
        auto = {
            "step_size": isinstance(self.step_size, TunedStepSize),
            "friction": self.friction == "auto",
            "scale": self.scale == "auto",
        }
        return tuple(name for name, is_auto in auto.items() if is_auto)

    def init(self, position: Tensor) -> TunedState:
        """Return the state at rest at ``position``, shape (..., D), with settings not yet tuned."""
        one = torch.ones_like(position[..., :1])
        friction = FRICTION if self.friction == "auto" else self.friction
        scale = 1.0 if self.scale == "auto" else self.scale
        return TunedState(
            position,
            torch.zeros_like(position),
            torch.full_like(position, scale),
            one,
            one * friction,
        )

    def step(
        self, state: TunedState, gradient: Tensor, noise: Tensor, numbers: StepNumbers
    ) -> TunedState:
        """Step by B, A, O, A; see :meth:`pyro_aeb.transitions.base.Transition.step`."""
        factor, tau = numbers
        time = state.scale * (state.step_size * factor).sqrt()
        half = 0.5 * time
        momentum = torch.addcmul(state.momentum, time, gradient)
        position = torch.addcmul(state.position, half, momentum)
        spread = (torch.expm1(-2.0 * state.friction).neg() / tau).sqrt()
        momentum.mul_(torch.exp(-state.friction)).addcmul_(noise, spread)
        return state._replace(position=position.addcmul_(half, momentum), momentum=momentum)

    def statistics(
        self, before: TunedState, after: TunedState, numbers: StepNumbers
    ) -> Mapping[str, Tensor]:
        r"""
        Return ``kinetic_temperature``, the mean square of the momentum over :math:`1 / \tau`, and
        the ``step_size``. On a Gaussian the temperature is 1 at any stable step size; gradient
        noise raises it, and so does a curvature that changes within a step.
        """
        factor, tau = numbers
        ratio = kinetic_temperature(after.momentum, before.position, 1.0 / tau)
        return {
            "kinetic_temperature": ratio,
            "step_size": (after.step_size * factor).squeeze(-1),
        }
