# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Control variates for the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule
from pyro_aeb.transitions.base import (
    Evaluated,
    HasStatistics,
    StepNumbers,
    Target,
    Transition,
)
from pyro_aeb.transitions.joined_state import inner_state, joined
from pyro_aeb.validation import count, gradient_transition, set_fields


@dataclass(frozen=True)
class SVRG:
    r"""
    Any transition, with control variates for its gradient [1, 2]. Let :math:`\hat L` be the
    likelihood's part of Q estimated from the data of the step, and L that of all data. At an anchor
    :math:`a`, where the chain was up to m steps before,

    .. math::
        g = \nabla \hat Q(\beta) - \nabla \hat L(a) + \nabla L(a)

    has the mean :math:`\nabla Q(\beta)`, and as the two estimates are from the same data, a
    variance that falls with the square of the distance to the anchor. So does the bias that noise
    of the gradient brings.

    A step takes two gradients, and every m-th one N / n more, for :math:`\nabla L(a)`; the state
    has two further vectors of D numbers. The data must be at hand: a DataLoader gives batches only.

    *While latents move.* :math:`\nabla L(a)` is at the latents of the step that computed it, and
    :math:`\nabla \hat L(a)` at those of this step. For latents of which the likelihood's gradient
    knows nothing (delta, rho, the penalties) that is no difference. A learned sigma, or another
    latent in the likelihood, biases the gradient by what :math:`\nabla L(a)` has changed by since
    the anchor was set: at most m steps' worth of :math:`\omega_k`, which goes to zero as
    :math:`\omega_k` does, and is zero with ``freeze_after_warmup``. If sigma moves fast, use a
    small m.

    :param inner: the transition.
    :param int every: m, the steps from one anchor to the next; about an epoch is usual.

    **References**

    [1] Avinava Dubey, Sashank J. Reddi, Barnabas Poczos, Alexander Smola, Eric Xing, Sinead
        Williamson (2016), "Variance reduction in stochastic gradient Langevin dynamics", NeurIPS,
        the method SVRG-LD.

    [2] Jack Baker, Paul Fearnhead, Emily Fox, Christopher Nemeth (2019), "Control variates for
        stochastic gradient MCMC", Statistics and Computing. (Their anchor, a mode, stays.)
    """

    inner: Transition[Any]
    every: int

    def __post_init__(self) -> None:
        set_fields(
            self,
            inner=gradient_transition("SVRG: inner", self.inner),
            every=count("SVRG: every", self.every, "the steps between anchors"),
        )

    @property
    def step_size(self) -> Schedule:
        """That of the inner transition."""
        return self.inner.step_size

    def init(self, position: Tensor) -> Any:
        """
        The inner transition's state with ``anchor`` and ``whole``, the gradient of L there, which
        the first step computes.

        :param Tensor position: flat weights, shape (..., D).
        """
        whole = torch.zeros_like(position)
        return joined("SVRGState", self.inner.init(position), anchor=position.clone(), whole=whole)

    def noise_size(self, size: int) -> int:
        """As many as weights."""
        return size

    def move(
        self, state: Any, here: Evaluated, noise: Tensor, numbers: StepNumbers, target: Target
    ) -> Any:
        """
        A step of the inner transition by g; see
        :meth:`pyro_aeb.transitions.base.TargetTransition.move`.
        """
        anchor, whole = state.anchor, state.whole
        if (target.step - 1) % self.every == 0:
            anchor = state.position.clone()
            whole = target.whole(anchor, prior=False).gradient
        gradient = here.gradient - target.batch(anchor, prior=False).gradient + whole
        moved = self.inner.step(inner_state(state), gradient, noise, numbers)
        return joined("SVRGState", moved, anchor=anchor, whole=whole)

    def statistics(
        self, before: Any, state: Any, numbers: StepNumbers, target: Target
    ) -> Mapping[str, Tensor]:
        """
        What the inner transition reports.

        :param before: the state before a step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        :param Target target: of the step.
        """
        if not isinstance(self.inner, HasStatistics):
            return {}
        return self.inner.statistics(inner_state(before), inner_state(state), numbers)
