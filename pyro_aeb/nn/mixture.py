# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The posterior predictive distribution for some data: a mixture with one component per draw.

:func:`predict_from` reads one draw's component off the likelihood, :func:`merge` averages the
predictions of different draws for the same data, and :func:`concatenate` those of the same draws
for different data. Both can be repeated, so that averages need not keep the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, OneHotCategorical

from pyro_aeb.errors import ModelError
from pyro_aeb.model.sites import as_numbers, unwrap

Kind = Literal["classes", "binary", "number"]


class Mixture(NamedTuple):
    """
    The prediction of some draws, equally weighted, for some data.

    :param str kind: ``"classes"`` (Categorical, OneHotCategorical), ``"binary"`` (Bernoulli) or
        ``"number"`` (all other distributions).
    :param int draws: their number.
    :param Tensor mean: the probabilities of classes, shape (..., C); the probability of 1 of a
        binary site, shape (...); else the mean, of the site's shape.
    :param Tensor variance: the variance of the mixture, of the site's shape; None unless
        ``"number"``.
    :param Tensor log_density: the log density of the mixture at the data, of the site's batch
        shape; None without data.
    :param Tensor target: the data (the class, of a OneHotCategorical); None without data.
    :param Tensor mask: which data count in scores, of the shape of the targets' leading axes; None
        for all.
    """

    kind: Kind
    draws: int
    mean: Tensor
    variance: Tensor | None
    log_density: Tensor | None
    target: Tensor | None
    mask: Tensor | None = None

    def select(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Return mean, target and log density of the data that no mask leaves out.

        :raises ValueError: if there are none.
        """
        mask, target, log_density = self.mask, self.target, self.log_density
        if mask is None or target is None or log_density is None:
            return self.mean, target, log_density
        if not mask.any():
            raise ValueError("the model masks all data, expected at least one to score")
        density_mask = mask.reshape(*log_density.shape, -1).any(-1)
        return self.mean[mask], target[mask], log_density[density_mask]


def predict_from(fn: Any, target: Tensor | None, mask: Any = None) -> Mixture:
    """
    Return one draw's prediction. Masks leave out data from scores, not from the prediction.

    :param fn: the likelihood's distribution at the draw.
    :param Tensor target: the observed value, or None.
    :param mask: the site's, from :func:`pyro.poutine.mask`; None for none.
    :raises ModelError: if the distribution has no mean or variance.
    """
    distribution, mask = _unmask(fn, mask)
    variance = None
    kind: Kind = "number"
    if isinstance(distribution, (Categorical, OneHotCategorical)):
        kind, mean = "classes", distribution.probs
    elif isinstance(distribution, Bernoulli):
        kind, mean = "binary", distribution.probs
    else:
        mean, variance = _moments(fn)
    log_density = None if target is None else _copy(fn.log_prob(as_numbers(fn, target)))
    if target is not None:
        one_hot = isinstance(distribution, OneHotCategorical)
        target = target.argmax(-1) if one_hot else target.clone()
    return Mixture(
        kind,
        1,
        _copy(mean),
        None if variance is None else _copy(variance),
        log_density,
        target,
        mask,
    )


def _unmask(fn: Any, mask: Any) -> tuple[Any, Tensor | None]:
    """Return the distribution of the single numbers, and which of them no mask leaves out."""
    masks = [] if mask is None else [(mask, fn.batch_shape)]
    inner = fn
    while isinstance(inner, (dist.Independent, dist.MaskedDistribution)):
        if isinstance(inner, dist.MaskedDistribution):
            masks.append((inner._mask, inner.batch_shape))
        inner = inner.base_dist
    if not masks:
        return inner, None
    kept = torch.ones(inner.batch_shape, dtype=torch.bool)
    for value, shape in masks:
        value = torch.as_tensor(value, dtype=torch.bool).expand(shape)
        kept = kept.to(value.device) & value.reshape(shape + (1,) * (kept.dim() - len(shape)))
    return inner, kept


def merge(first: Mixture | None, second: Mixture) -> Mixture:
    """
    Return the mixture of the draws of two mixtures, for the same data.

    Means (probabilities, of classes) are averaged, densities are averaged in the log domain, and
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


def concatenate(parts: Sequence[Mixture]) -> Mixture:
    """
    Return the prediction for the data of all parts, joined along the first axis.

    :param parts: at least one; of the same draws.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if masks := [part.mask for part in parts if part.mask is not None]:
        parts = [_add_mask(part, masks[0]) for part in parts]
        first = parts[0]
    names = [name for name, value in first._asdict().items() if isinstance(value, Tensor)]
    joined: dict[str, Any] = {n: torch.cat([getattr(part, n) for part in parts]) for n in names}
    return first._replace(**joined)


def _add_mask(part: Mixture, other: Tensor) -> Mixture:
    """Give a batch that has no mask, unlike another one, a mask that leaves nothing out."""
    if part.mask is not None:
        return part
    return part._replace(mask=other.new_ones(part.mean.shape[: other.dim()]))


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    try:
        return fn.mean, fn.variance
    except NotImplementedError as error:
        raise ModelError(
            f"the likelihood is {type(unwrap(fn)).__name__}, which has no mean or variance, "
            "expected Categorical, OneHotCategorical, Bernoulli, or a distribution with both, "
            "such as Normal; use pyro.infer.Predictive for samples of it"
        ) from error


def _copy(value: Tensor) -> Tensor:
    """
    Copy a tensor, in single precision at least: a mean may be a view of the draw's weights, which
    change in place.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    return value.detach().to(wide, copy=True)
