# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Closed-form maximisers under conjugate priors.

Given all other values, the log joint density of a latent with a conjugate prior is one of these
forms of two numbers A and B:

==================  =============================================  =========================
prior               log joint density                              its maximiser
==================  =============================================  =========================
``InverseGamma``    :math:`-A \log\theta - B / \theta`             :math:`B / A`
``Gamma``           :math:`A \log\theta - B \theta`                :math:`A / B`
``Beta``            :math:`A \log\theta + B \log(1 - \theta)`      :math:`A / (A + B)`
``Normal``          :math:`A \theta - B \theta^2 / 2`              :math:`A / B`
``Dirichlet``       :math:`\sum_k A_k \log\theta_k`                :math:`A_k / \sum_j A_j`
==================  =============================================  =========================

plus a constant. A and B sum the prior's parameters and the sufficient statistics of all sites that
depend on the latent, be it the variance, precision or mean of Normal sites, the rate of Poisson
sites, the probabilities of Bernoulli or Categorical sites, or several of these. The first two
derivatives at any value determine them, so the sites' distributions need not be known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.latents.contract import AveragedStatistics, LatentUpdate, Seen


class Form(NamedTuple):
    """
    A form of the log joint density.

    :param numbers: (value, gradient, curvature) to (A, B).
    :param gradient: (value, A, B) to the gradient.
    :param maximiser: (A, B) to its maximiser.
    :param recenter: (value, A, B) to (A, B) of the same total count or precision whose maximiser is
        the value.
    """

    numbers: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    maximiser: Callable[[Tensor, Tensor], Tensor]
    recenter: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _inverse_gamma(value: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    b = -value.square() * (first + value * second)
    return b / value - value * first, b


def _gamma(value: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    a = -value.square() * second
    return a, a / value - first


def _beta(value: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    rest = 1.0 - value
    b = -rest.square() * (first + value * second)
    return value * (first + b / rest), b


def _dirichlet(value: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    # A Categorical divides by the sum of its probabilities: minus its count, in the gradient.
    counts = second[..., 1:2].expand_as(value)
    return value * (first + counts), counts


def _share(a: Tensor, b: Tensor) -> Tensor:
    tiny, eps = torch.finfo(a.dtype).tiny, torch.finfo(a.dtype).eps
    a, b = a.clamp(min=0.0), b.clamp(min=0.0)
    return (a / (a + b).clamp(min=tiny)).clamp(tiny, 1.0 - eps)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    tiny = torch.finfo(a.dtype).tiny
    return (a.clamp(min=tiny) / b.clamp(min=tiny)).clamp(min=tiny)


def _shares(a: Tensor, _: Tensor) -> Tensor:
    a = a.clamp(min=torch.finfo(a.dtype).tiny)
    return a / a.sum(-1, keepdim=True)


FORMS: Mapping[type, Form] = {
    dist.InverseGamma: Form(
        _inverse_gamma,
        gradient=lambda x, a, b: -a / x + b / x.square(),
        maximiser=lambda a, b: _ratio(b, a),
        recenter=lambda x, a, b: (a, a * x),
    ),
    dist.Gamma: Form(
        _gamma,
        gradient=lambda x, a, b: a / x - b,
        maximiser=_ratio,
        recenter=lambda x, a, b: (a, a / x),
    ),
    dist.Beta: Form(
        _beta,
        gradient=lambda x, a, b: a / x - b / (1.0 - x),
        maximiser=_share,
        recenter=lambda x, a, b: ((a + b) * x, (a + b) * (1.0 - x)),
    ),
    dist.Normal: Form(
        lambda x, first, second: (first - x * second, -second),
        gradient=lambda x, a, b: a - b * x,
        maximiser=lambda a, b: a / b,
        recenter=lambda x, a, b: (b * x, b),
    ),
    dist.Dirichlet: Form(
        _dirichlet,
        gradient=lambda x, a, b: a / x - b,
        maximiser=_shares,
        recenter=lambda x, a, b: (x * a.sum(-1, keepdim=True), b),
    ),
}
"""The conjugate priors, by class."""


@dataclass(frozen=True)
class ClosedForm(LatentUpdate):
    """
    Move a latent to the maximiser of the log joint density given all other values, the M-step of
    EM, in closed form.

    The site's prior is an InverseGamma, Gamma, Beta, Normal or Dirichlet distribution, conjugate to
    everything that depends on the site; the inspection of the model checks this. Equation (8)
    averages the form's A and B, so that the limit is that of EM; see
    :class:`~pyro_aeb.latents.contract.AveragedStatistics`. The initial value has the weight of the
    first step.

    The maximiser depends on the parametrisation: that of a Gamma precision is not the inverse of
    that of an InverseGamma variance.
    """

    def of(self, prior: Any) -> ConjugateUpdate:
        """Return the update for a site with one of the conjugate priors."""
        if type(prior) not in FORMS:
            known = ", ".join(kind.__name__ for kind in FORMS)
            raise ValueError(
                f"~ {type(prior).__name__}, which has no closed-form update, expected one of "
                f"{known}; use latents.GradientStep(...) or a function of your own"
            )
        return ConjugateUpdate(FORMS[type(prior)])


@dataclass(frozen=True)
class ConjugateUpdate(AveragedStatistics):
    """
    The update of a site with a conjugate prior.

    :param Form form: of its log joint density.
    """

    form: Form
    derivatives = 2

    def statistics(self, seen: Seen) -> Tensor:
        """Return A and B, stacked along a first axis."""
        return torch.stack(self.form.numbers(seen.value, *seen.derivatives()))

    def maximiser(self, statistics: Tensor) -> Tensor:
        """Return the value given A and B."""
        return self.form.maximiser(*statistics.unbind())

    def first(self, statistics: Tensor, value: Tensor) -> Tensor:
        """Return A and B of the first step, recentered at the initial value."""
        return torch.stack(self.form.recenter(value, *statistics.unbind()))
