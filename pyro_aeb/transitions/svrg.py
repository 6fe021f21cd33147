# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Control variates for the stochastic gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target, Transition, statistics_of
from pyro_aeb.transitions.joined_state import inner_state, join_state
from pyro_aeb.validation import check_fields, count, gradient_transition


@dataclass(frozen=True)
class SVRG:
    r"""
    Any transition, with control variates for its gradient [1, 2]. Let :math:`\hat L` be the log
    likelihood estimated from the data of the step, and L that of all data. At an anchor :math:`a`,
    the position up to m steps before,

    .. math::
        g = \nabla \hat Q(\beta) - \nabla \hat L(a) + \nabla L(a)

    has the mean :math:`\nabla Q(\beta)`. As both estimates are from the same data, its variance
    falls with the square of the distance to the anchor, and so does the bias from gradient noise.

    A step takes two gradients, and every m-th step N / n more, for :math:`\nabla L(a)`; the state
    has two further vectors of D numbers. The data must be tensors, not a DataLoader.

    *Stationary law.* That of the inner transition with less gradient noise. While latents move,
    :math:`\nabla L(a)` is at the latents of the step that computed it, and
    :math:`\nabla \hat L(a)` at those of the current step. That makes no difference for latents
    outside of the likelihood (delta, rho, the penalties). A learned sigma, or another latent in the
    likelihood, biases the gradient by the change of :math:`\nabla L(a)` since the anchor was set:
    that of at most m steps, which goes to zero with :math:`\omega_k` and is zero with
    ``freeze_after_warmup``. If sigma moves fast, use a small m.

    :param inner: the transition.
    :param int every: m, the steps between anchors; about an epoch is usual.

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
        every = partial(count, meaning="the steps between anchors")
        check_fields(self, inner=gradient_transition, every=every)

    @property
    def step_size(self) -> Schedule:
        """The step size of the inner transition."""
        return self.inner.step_size

    def init(self, position: Tensor) -> Any:
        """
        Return the inner transition's state with ``anchor`` and ``whole``, the gradient of L at the
        anchor, which the first step computes.

        :param Tensor position: flat weights, shape (..., D).
        """
        whole = torch.zeros_like(position)
        return join_state(
            "SVRGState", self.inner.init(position), anchor=position.clone(), whole=whole
        )

    def noise_size(self, size: int) -> int:
        """Return ``size``: one number a weight."""
        return size

    def move(
        self, state: Any, evaluated: Evaluated, noise: Tensor, numbers: StepNumbers, target: Target
    ) -> Any:
        """
        Step by the inner transition with gradient g; see
        :meth:`pyro_aeb.transitions.base.TargetTransition.move`.
        """
        anchor, whole = state.anchor, state.whole
        if (target.step - 1) % self.every == 0:
            anchor = state.position.clone()
            whole = target.whole(anchor, prior=False).gradient
        gradient = evaluated.gradient - target.batch(anchor, prior=False).gradient + whole
        inner = self.inner.step(inner_state(state), gradient, noise, numbers)
        return join_state("SVRGState", inner, anchor=anchor, whole=whole)

    def statistics(
        self, before: Any, after: Any, numbers: StepNumbers, target: Target
    ) -> Mapping[str, Tensor]:
        """Return the statistics of the inner transition."""
        return statistics_of(self.inner, inner_state(before), inner_state(after), numbers)
