# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What draws predict for some data, and the average of it: the posterior predictive distribution is a
mixture with one component a draw.

:func:`predicted` reads one draw's prediction off the likelihood's distribution. :func:`averaged`
joins the predictions of different draws for the same data, :func:`concatenated` those of the same
draws for different data. Both can be repeated, so averages run along without the draws being kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, OneHotCategorical

from pyro_aeb.errors import ModelError
from pyro_aeb.model.tracing import unwrap

Kind = Literal["classes", "binary", "number"]


class Mixture(NamedTuple):
    """
    The prediction of some draws, equally weighted, for some data.

    :param str kind: ``"classes"`` (Categorical, OneHotCategorical), ``"binary"`` (Bernoulli) or
        ``"number"`` (all other distributions).
    :param int draws: how many.
    :param Tensor mean: for classes the probabilities, shape (..., C); binary the probability of 1,
        shape (...); else the mean, of the site's shape.
    :param Tensor variance: of the mixture, of the site's shape; None unless ``"number"``.
    :param Tensor log_density: log of the mixture's density at the data, of the site's batch shape;
        None where there are no data.
    :param Tensor target: the data (of a OneHotCategorical, the number of the class), or None.
    """

    kind: Kind
    draws: int
    mean: Tensor
    variance: Tensor | None
    log_density: Tensor | None
    target: Tensor | None


def predicted(fn: Any, target: Tensor | None) -> Mixture:
    """
    One draw's prediction.

    :param fn: the likelihood's distribution at the draw.
    :param Tensor target: the observed value, or None.
    :raises ModelError: if the distribution has no mean or variance to report.
    """
    log_density = None if target is None else _kept(fn.log_prob(target))
    own, variance = unwrap(fn), None
    kind: Kind = "number"
    if isinstance(own, (Categorical, OneHotCategorical)):
        kind, mean = "classes", own.probs
        if target is not None and isinstance(own, OneHotCategorical):
            target = target.argmax(-1)
    elif isinstance(own, Bernoulli):
        kind, mean = "binary", own.probs
    else:
        mean, variance = _moments(fn)
    return Mixture(
        kind,
        1,
        _kept(mean),
        None if variance is None else _kept(variance),
        log_density,
        None if target is None else target.clone(),
    )


def averaged(first: Mixture | None, second: Mixture) -> Mixture:
    """
    The mixture of the draws of two mixtures, for the same data.

    Means (probabilities, for classes) are averaged, densities are averaged in the log domain, and
    the variance is that of the mixture by the law of total variance: the mean of the variances plus
    the variance of the means.

    :param Mixture first: None for no draws.
    """
    if first is None:
        return second
    draws = first.draws + second.draws
    old, new = first.draws / draws, second.draws / draws
    difference = second.mean - first.mean
    variance, log_density = None, None
    if first.variance is not None and second.variance is not None:
        variance = old * first.variance + new * second.variance + old * new * difference.square()
    if first.log_density is not None and second.log_density is not None:
        log_density = torch.logaddexp(
            first.log_density + math.log(old), second.log_density + math.log(new)
        )
    return first._replace(
        draws=draws, mean=first.mean + new * difference, variance=variance, log_density=log_density
    )


def concatenated(parts: Sequence[Mixture]) -> Mixture:
    """
    The prediction for the data of all parts, joined along the first axis.

    :param parts: at least one; of the same draws.
    """
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    first = parts[0]
    return Mixture(
        first.kind,
        first.draws,
        torch.cat([part.mean for part in parts]),
        join("variance"),
        join("log_density"),
        join("target"),
    )


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    try:
        return fn.mean, fn.variance
    except NotImplementedError as error:
        raise ModelError(
            f"the likelihood is {type(unwrap(fn)).__name__}, which has no mean or variance, "
            "expected Categorical, OneHotCategorical, Bernoulli, or a distribution with both, "
            "such as Normal; use pyro.infer.Predictive for samples of it"
        ) from error


def _kept(value: Tensor) -> Tensor:
    """
    A copy, in single precision at least, that shares nothing with the draw: a mean may be a view of
    the weights, which move on.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    return value.detach().to(wide, copy=True)
