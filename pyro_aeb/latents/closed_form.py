# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The maximiser in closed form, where the prior is conjugate.

With all other values held, the log joint density of a latent under a conjugate prior has a form
with two numbers, whatever the sites below it are:

==================  =============================================  =========================
prior               log joint density                              its maximiser
==================  =============================================  =========================
``InverseGamma``    :math:`-A \log\theta - B / \theta`             :math:`B / A`
``Gamma``           :math:`A \log\theta - B \theta`                :math:`A / B`
``Beta``            :math:`A \log\theta + B \log(1 - \theta)`      :math:`A / (A + B)`
``Normal``          :math:`A \theta - B \theta^2 / 2`              :math:`A / B`
``Dirichlet``       :math:`\sum_k A_k \log\theta_k`                :math:`A_k / \sum_j A_j`
==================  =============================================  =========================

plus a constant. A and B are the prior's numbers and the sufficient statistics of all that depends
on the latent, summed: the variance of a Normal, its precision, its mean, the rate of a Poisson, the
probabilities of a Bernoulli or a Categorical, or several of them at once. The first two derivatives
at any value tell them, and so nothing about the sites below a latent needs to be known.
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

    :param numbers: (value, gradient, curvature) to A and B.
    :param gradient: (value, A, B) to the gradient.
    :param maximiser: (A, B) to the value.
    :param moved: (value, A, B) to as many counts, as precise, with their maximiser at the value.
    """

    numbers: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    maximiser: Callable[[Tensor, Tensor], Tensor]
    moved: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


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


def _normal(value: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first - value * second, -second


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


def _moved_shares(value: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return value * a.sum(-1, keepdim=True), b


FORMS: Mapping[type, Form] = {
    dist.InverseGamma: Form(
        _inverse_gamma,
        gradient=lambda x, a, b: -a / x + b / x.square(),
        maximiser=lambda a, b: _ratio(b, a),
        moved=lambda x, a, b: (a, a * x),
    ),
    dist.Gamma: Form(
        _gamma,
        gradient=lambda x, a, b: a / x - b,
        maximiser=_ratio,
        moved=lambda x, a, b: (a, a / x),
    ),
    dist.Beta: Form(
        _beta,
        gradient=lambda x, a, b: a / x - b / (1.0 - x),
        maximiser=_share,
        moved=lambda x, a, b: ((a + b) * x, (a + b) * (1.0 - x)),
    ),
    dist.Normal: Form(
        _normal,
        gradient=lambda x, a, b: a - b * x,
        maximiser=lambda a, b: a / b,
        moved=lambda x, a, b: (b * x, b),
    ),
    dist.Dirichlet: Form(
        _dirichlet,
        gradient=lambda x, a, b: a / x - b,
        maximiser=_shares,
        moved=_moved_shares,
    ),
}
"""The conjugate priors, by class."""


@dataclass(frozen=True)
class ClosedForm(LatentUpdate):
    """
    Moves a latent to the maximiser of the log joint density given all else, the M-step of EM, in
    closed form. For sites with an InverseGamma, Gamma, Beta, Normal or Dirichlet prior that is
    conjugate to all that depends on them, which the look at the model makes sure of.

    What equation (8) averages is A and B of the form, so that it ends where EM does; see
    :class:`~pyro_aeb.latents.contract.AveragedStatistics`. The first value counts as much as the
    first step does.

    The maximiser is that over the site's own value: of a Gamma precision, it is not one over that
    of an InverseGamma variance.
    """

    def of(self, prior: Any) -> InForm:
        """The update for a site with one of the conjugate priors."""
        if type(prior) not in FORMS:
            known = ", ".join(kind.__name__ for kind in FORMS)
            raise ValueError(
                f"~ {type(prior).__name__}, which has no closed-form update, expected one of "
                f"{known}; use latents.GradientStep(...) or a function of your own"
            )
        return InForm(FORMS[type(prior)])


@dataclass(frozen=True)
class InForm(AveragedStatistics):
    """
    The maximiser of a log joint density of a form.

    :param Form form: the site's.
    """

    form: Form
    derivatives = 2

    def statistics(self, seen: Seen) -> Tensor:
        """A and B, along a first axis."""
        return torch.stack(self.form.numbers(seen.value, *seen.derivatives()))

    def maximiser(self, statistics: Tensor) -> Tensor:
        """Given A and B."""
        return self.form.maximiser(*statistics.unbind())

    def first(self, statistics: Tensor, value: Tensor) -> Tensor:
        """A and B of the first step, with their maximiser moved to the first value."""
        return torch.stack(self.form.moved(value, *statistics.unbind()))
