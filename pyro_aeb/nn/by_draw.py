# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Predictions of every draw apart: what of their uncertainty is noise, what the weights'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.special import entr

from pyro_aeb.model.sites import unwrap
from pyro_aeb.nn.mixture import Mixture, concatenate
from pyro_aeb.validation import number

BISECTIONS = 60
SAMPLES = 4000


class Uncertainty(NamedTuple):
    """
    The uncertainty of a prediction and its two parts, each of the data's shape. Of classes in nats,
    of numbers in the targets' units squared.

    :param Tensor total: entropy of the averaged probabilities, or variance of the posterior
        predictive distribution.
    :param Tensor aleatoric: the noise, which more data do not remove: the mean over draws of their
        entropies, or of their variances.
    :param Tensor epistemic: that of the weights: the mutual information of class and weights, or
        the variance over draws of their means. The two parts sum to the total.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


class DrawPredictions:
    """
    The predictions of every draw, made by :meth:`PosteriorPredictive.by_draw`.

    :param parts: of every draw, the predictions of all batches.
    :param likelihoods: of every draw, the distributions of all batches.
    """

    mean: Tensor
    """Probabilities, shape (draws, ..., C) of classes and (draws, ...) of a Bernoulli, or means."""
    sd: Tensor | None
    """Standard deviations of the likelihood, shape (draws, ...); None of classes."""

    def __init__(
        self, parts: Sequence[Sequence[Mixture]], likelihoods: Sequence[Sequence[Any]]
    ) -> None:
        draws = [concatenate(batches) for batches in parts]
        self._kind = draws[0].kind
        self._likelihoods = [[unwrap(fn) for fn in batches] for batches in likelihoods]
        self.mean = torch.stack([draw.mean for draw in draws])
        variances = [draw.variance for draw in draws if draw.variance is not None]
        self.sd = torch.stack(variances).sqrt() if variances else None

    def uncertainty(self) -> Uncertainty:
        """Return the uncertainty of the average over draws, and its parts."""
        mean = self.mean.mean(0)
        if self.sd is not None:
            aleatoric = self.sd.square().mean(0)
            epistemic = self.mean.var(0, correction=0)
            return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)
        total, aleatoric = self._entropy(mean), self._entropy(self.mean).mean(0)
        epistemic = (total - aleatoric).clamp_min(0.0)  # rounding
        return Uncertainty(total, aleatoric, epistemic)

    def _entropy(self, probs: Tensor) -> Tensor:
        return entr(probs).sum(-1) if self._kind == "classes" else entr(probs) + entr(1.0 - probs)

    def quantiles(self, probs: float | Sequence[float]) -> Tensor:
        """
        Return quantiles. Of numbers, those of the posterior predictive distribution, the noise of
        the likelihood included: ``quantiles([0.05, 0.95])`` are the bounds of a 90 % interval for
        a new datum, number by number. Of classes, those of their probabilities over the draws.

        They are exact where the likelihood has ``cdf`` and ``icdf``, as Normal has; else those of
        some thousand samples.

        :param probs: one number in (0, 1), or several, which then are the leading axis.
        """
        levels = [probs] if isinstance(probs, (int, float)) else list(probs)
        levels = [number("probs", level, "(0, 1)") for level in levels]
        if self.sd is None:
            points = torch.tensor(levels, dtype=self.mean.dtype, device=self.mean.device)
            result = torch.stack([self.mean.quantile(point, dim=0) for point in points])
        else:
            batches = list(zip(*self._likelihoods, strict=True))
            result = torch.stack(
                [torch.cat([_find_quantile(fns, level) for fns in batches]) for level in levels]
            ).to(self.mean.dtype)
        return result[0] if isinstance(probs, (int, float)) else result


def _find_quantile(fns: Sequence[Any], level: float) -> Tensor:
    """Return a quantile of a mixture by bisection; it lies between those of its components."""
    try:
        points = torch.stack([fn.icdf(torch.full_like(fn.mean, level)) for fn in fns])
        fns[0].cdf(points[0])
    except NotImplementedError:
        samples = torch.cat([fn.sample((math.ceil(SAMPLES / len(fns)),)) for fn in fns])
        return samples.sort(0).values[math.floor(level * len(samples))]
    low, high = points.amin(0), points.amax(0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = sum(fn.cdf(middle) for fn in fns) / len(fns) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
