# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Preconditioned stochastic-gradient Langevin dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, as_step_size
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target
from pyro_aeb.validation import count, flag, number, positive, set_fields


class PSGLDState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor square: V, the moving average of squared gradients, shape (..., D).
    """

    position: Tensor
    square: Tensor


class CorrectedPSGLDState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor square: V, the moving average of squared gradients, shape (..., D).
    :param Tensor slope: S, that of the derivatives of the squares, shape (..., D).
    """

    position: Tensor
    square: Tensor
    slope: Tensor


@dataclass(frozen=True)
class PSGLD:
    r"""
    Stochastic-gradient Langevin dynamics with the preconditioner of RMSprop [1]:

    .. math::
        V &\leftarrow \lambda V + (1 - \lambda)\, \nabla Q \circ \nabla Q \\
        G &= 1 / (d + \sqrt{V / (1 - \lambda^k)}) \\
        \beta &\leftarrow \beta + \epsilon_k (G \circ \nabla Q + \Gamma / \tau)
            + N(0, 2 \epsilon_k G / \tau).

    Weights of steep directions take small steps and those of flat directions large ones. Dividing
    by :math:`1 - \lambda^k` at step k corrects for V = 0 at the start.

    *Stationary law.* A preconditioner that depends on the position needs the term
    :math:`\Gamma_i = \partial G_i / \partial \beta_i`; without it the law is another one, at any
    step size. There are three ways to handle it.

    - *Leave it out*, the default, and usual. If V follows the chain, which it does when
      :math:`1 - \lambda` is large compared with step size times curvature, the law is
      :math:`\exp(\tau Q) / G`: too wide, up to twice the variance of a Gaussian, with too little
      mass near the mode. If V averages over all that the chain visits, or is mostly noise of the
      gradient, G is nearly constant and the error is small.
    - ``adapt_until=k`` stops V after step k. From then on this is
      :class:`~pyro_aeb.transitions.sgld.SGLD` with a step size for every weight, which needs no
      correction and has the bias of SGLD. Let warm-up last longer than k. G then no longer adapts
      where the curvature changes. *This is the safe way.*
    - ``correction=True`` estimates :math:`\Gamma_i = - G_i^2 S_i / (2 \sqrt{V_i})` while V moves; S
      averages the derivatives :math:`2 \nabla_i Q\, H_{ii}` as V averages the squares. The diagonal
      of the Hessian H takes two more gradients, at :math:`\beta \pm r`, where r has random signs
      and the size of the step's noise: :math:`(\nabla_i Q(\beta + r) - \nabla_i Q(\beta - r)) / 2
      r_i` has mean :math:`H_{ii}` if Q is quadratic. ([1] takes the derivative of the last gradient
      in V alone, a share :math:`1 - \lambda` of the sum.) The remaining error, of treating V as a
      function of the position, vanishes if V follows the chain closely or does not move at all, but
      not in between. With minibatches, noise that V and H share adds to it.

    :param step_size: :math:`\epsilon_k`, a number or a schedule, in units of the weights: with V
        near the square of the gradient, a step moves a weight by about that much.
    :param float decay: :math:`\lambda` in [0, 1); V averages over about :math:`1 / (1 - \lambda)`
        steps.
    :param float damping: :math:`d > 0`, in units of the gradient of Q (a sum over the N data).
        Weights of smaller gradients move as in SGLD with a step of :math:`\epsilon / d`.
    :param bool correction: whether to estimate Gamma.
    :param int adapt_until: the last step that changes V; None for all.

    **References**

    [1] Chunyuan Li, Changyou Chen, David Carlson, Lawrence Carin (2016), "Preconditioned stochastic
        gradient Langevin dynamics for deep neural networks", AAAI.
    """

    step_size: Schedule
    decay: float = 0.99
    damping: float = 1.0
    correction: bool = False
    adapt_until: int | None = None

    def __init__(
        self,
        step_size: Schedule | float,
        decay: float = 0.99,
        damping: float = 1.0,
        correction: bool = False,
        adapt_until: int | None = None,
    ) -> None:
        if adapt_until is not None:
            adapt_until = count("PSGLD: adapt_until", adapt_until, "the last step that changes V")
        set_fields(
            self,
            step_size=as_step_size(step_size),
            decay=number("PSGLD: decay", decay, "[0, 1)", "0.99 remembers about 100 steps"),
            damping=positive("PSGLD: damping", damping, "the size of a small gradient"),
            correction=flag("PSGLD: correction", correction),
            adapt_until=adapt_until,
        )

    def init(self, position: Tensor) -> PSGLDState | CorrectedPSGLDState:
        """Return the state at ``position``, shape (..., D), before any gradient."""
        zero = torch.zeros_like(position)
        if self.correction:
            return CorrectedPSGLDState(position, zero, zero.clone())
        return PSGLDState(position, zero)

    def noise_size(self, size: int) -> int:
        """Return ``size``, one number a weight; twice that with ``correction``, for r's signs."""
        return 2 * size if self.correction else size

    def move(
        self,
        state: PSGLDState | CorrectedPSGLDState,
        evaluated: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> PSGLDState | CorrectedPSGLDState:
        """Step as above; see :meth:`pyro_aeb.transitions.base.TargetTransition.move`."""
        (epsilon, tau), gradient, size = numbers, evaluated.gradient, state.position.shape[-1]
        adapts = self.adapt_until is None or target.step <= self.adapt_until
        square = state.square
        if adapts:
            square = self._average(square, gradient * gradient)
        steps = target.step if adapts or self.adapt_until is None else self.adapt_until
        filled = 1.0 - self.decay**steps
        root = (square / filled).sqrt()
        preconditioner = 1.0 / (self.damping + root)
        spread = (preconditioner * (2.0 * epsilon / tau)).sqrt()
        position = state.position + epsilon * preconditioner * gradient + spread * noise[..., :size]
        if not isinstance(state, CorrectedPSGLDState):
            return PSGLDState(position, square)
        if not adapts:
            return CorrectedPSGLDState(position, square, state.slope)
        r = torch.where(noise[..., size:] < 0.0, -spread, spread)
        hessian = self._hessian(state.position, r, target)
        slope = self._average(state.slope, 2.0 * gradient * hessian)
        bend = slope / filled / (2.0 * root.clamp_min(torch.finfo(root.dtype).tiny))
        position = position - (epsilon / tau) * preconditioner.square() * bend
        return CorrectedPSGLDState(position, square, slope)

    def _average(self, old: Tensor, new: Tensor) -> Tensor:
        return self.decay * old + (1.0 - self.decay) * new

    @staticmethod
    def _hessian(position: Tensor, r: Tensor, target: Target) -> Tensor:
        """Estimate the diagonal of the Hessian."""
        ahead, behind = target.batch(position + r), target.batch(position - r)
        return (ahead.gradient - behind.gradient) / (2.0 * r)
