# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The stochastic-gradient Nose-Hoover thermostat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, add_scaled, as_step_size
from pyro_aeb.transitions.base import StepNumbers, kinetic_temperature
from pyro_aeb.validation import positive, set_fields


class SGNHTState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor momentum: displacement of a step, before the second half of the last kick; shape
        (..., D).
    :param Tensor friction: the thermostat, one number a chain, shape (..., 1).
    """

    position: Tensor
    momentum: Tensor
    friction: Tensor


@dataclass(frozen=True)
class SGNHT:
    r"""
    The stochastic-gradient Nose-Hoover thermostat [1]: momentum with a friction :math:`\xi` that
    adapts to the momentum's energy. Noise of the gradient heats the momentum, and the friction
    rises until it removes that heat. The noise need not be known, unlike the ``gradient_noise`` of
    :class:`~pyro_aeb.transitions.sghmc.SGHMC`, but must be the same in all weights: there is one
    thermostat a chain.

    The steps are those of [2], which keep the temperature at any friction; the Euler steps of [1]
    have an error of a share :math:`\alpha / 2` of the variance:

    .. math::
        v &\leftarrow v + \eta_k \nabla_\beta Q \\
        \beta &\leftarrow \beta + v / 2 \\
        \xi &\leftarrow \xi + \tfrac{\gamma}{2} (\tau \overline{v^2} / \eta_k - 1) \\
        v &\leftarrow e^{-\xi} v + N(0, \tfrac{\alpha}{\xi} (1 - e^{-2 \xi})\, \eta_k / \tau) \\
        \xi &\leftarrow \xi + \tfrac{\gamma}{2} (\tau \overline{v^2} / \eta_k - 1) \\
        \beta &\leftarrow \beta + v / 2

    With :math:`\gamma = 0` this is :class:`~pyro_aeb.transitions.baoab.BAOAB`, which explains why
    the first line is a whole kick. :math:`\overline{v^2}` is the mean square over the weights that
    pruning does not hold at zero.

    *Stationary law.* That of the friction is :math:`N(\alpha + \eta \tau g / 2, \gamma / n)` for n
    weights and a gradient with noise of variance g.

    :param step_size: :math:`\eta_k`, a number or a schedule. It multiplies the gradient of the log
        posterior of the whole data set (a sum over the N data).
    :param float friction: :math:`\alpha > 0`, the friction that balances the injected noise, and
        the first :math:`\xi`.
    :param float coupling: :math:`\gamma > 0`; the thermostat responds within about
        :math:`1 / \sqrt{2 \gamma}` steps. In [1] it is :math:`\eta_k`.

    **References**

    [1] Nan Ding, Youhan Fang, Ryan Babbush, Changyou Chen, Robert Skeel, Hartmut Neven (2014),
        "Bayesian sampling using stochastic gradient thermostats", NeurIPS.

    [2] Benedict Leimkuhler, Xiaocheng Shang (2016), "Adaptive thermostats for noisy gradient
        systems", SIAM Journal on Scientific Computing, the method BADODAB.
    """

    step_size: Schedule
    friction: float = 0.1
    coupling: float = 0.01

    def __init__(
        self, step_size: Schedule | float, friction: float = 0.1, coupling: float = 0.01
    ) -> None:
        friction = positive("SGNHT: friction", friction, "it scales the injected noise")
        coupling = positive("SGNHT: coupling", coupling, "a thermostat that never moves is BAOAB")
        step_size = as_step_size(step_size)
        set_fields(self, step_size=step_size, friction=friction, coupling=coupling)

    def init(self, position: Tensor) -> SGNHTState:
        """Return the state at rest at ``position``, shape (..., D)."""
        friction = torch.full_like(position[..., :1], self.friction)
        return SGNHTState(position, torch.zeros_like(position), friction)

    def step(
        self, state: SGNHTState, gradient: Tensor, noise: Tensor, numbers: StepNumbers
    ) -> SGNHTState:
        """Step by B, A, D, O, D, A; see :meth:`pyro_aeb.transitions.base.Transition.step`."""
        eta, tau = numbers
        moving = ((state.position != 0.0) | (state.momentum != 0.0)).to(gradient.dtype)
        count = moving.sum(-1, keepdim=True).clamp_min(1.0)

        def update_friction(friction: Tensor, momentum: Tensor) -> Tensor:
            mean_square = (momentum * momentum * moving).sum(-1, keepdim=True) / count
            return friction + 0.5 * self.coupling * (mean_square * (tau / eta) - 1.0)

        momentum = add_scaled(state.momentum, gradient, eta)
        position = torch.add(state.position, momentum, alpha=0.5)
        friction = update_friction(state.friction, momentum)
        variance = 2.0 * self.friction * (eta / tau) * _mean_decay(2.0 * friction)
        momentum.mul_(torch.exp(-friction)).add_(noise * variance.sqrt())
        friction = update_friction(friction, momentum)
        return SGNHTState(position.add_(momentum, alpha=0.5), momentum, friction)

    def statistics(
        self, before: SGNHTState, after: SGNHTState, numbers: StepNumbers
    ) -> Mapping[str, Tensor]:
        r"""
        Return ``kinetic_temperature``, the mean square of the momentum over :math:`\eta / \tau`,
        which the thermostat keeps at 1; and ``friction``, :math:`\xi`, which shows the gradient's
        noise.
        """
        eta, tau = numbers
        measured = kinetic_temperature(after.momentum, before.position, eta / tau)
        return {"kinetic_temperature": measured, "friction": after.friction[..., 0]}


def _mean_decay(x: Tensor) -> Tensor:
    """Return (1 - exp(-x)) / x, which is 1 at x = 0 and positive everywhere."""
    zero = x == 0.0
    divisor = torch.where(zero, torch.ones_like(x), x)
    return torch.where(zero, torch.ones_like(x), -torch.expm1(-x) / divisor)
