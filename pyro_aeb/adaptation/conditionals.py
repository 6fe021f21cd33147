# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The law of a unit's weights given its gamma and all other weights, where the log likelihood is
quadratic in them, :math:`t^T \beta - \beta^T H \beta / 2`; :math:`t` is its gradient at
:math:`\beta = 0`.

Under a Gaussian component the law is Normal. Under a Laplace one the log likelihood is taken with
the diagonal of H alone, exactly so for a single weight: each weight is then a mixture of two
truncated Normals, one on either side of zero. Masses are the integrals of the component's density
times the likelihood.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_aeb.adaptation.units import (
    Blocks,
    Units,
    add_diagonal,
    cholesky,
    diagonal,
    multiply,
    solve,
)

FLAT = 1e-8
"""The least curvature under a Laplace component, over its squared rate: next to none."""


class Conditional(ABC):
    """The law of every unit's weights under one component."""

    def __init__(self, units: Units) -> None:
        self._units = units

    @abstractmethod
    def log_mass(self, t: Tensor) -> Tensor:
        """Return the logarithm of the mass of every unit, shape (..., P) to (..., U)."""

    @abstractmethod
    def draw(self, t: Tensor, uniform: Tensor) -> Tensor:
        """Turn uniform numbers into draws, shape (..., P)."""

    @abstractmethod
    def log_likelihood(self, t: Tensor, beta: Tensor) -> Tensor:
        """Return the log likelihood of every unit's weights as this law takes it, (..., U)."""

    @abstractmethod
    def log_prior(self, beta: Tensor) -> Tensor:
        """Return the log density of the component, up to a constant, (..., U)."""


class GaussianConditional(Conditional):
    """
    The law under a Gaussian component.

    :param Blocks curvature: H.
    :param Tensor variance: of the component, shape (..., P).
    """

    def __init__(self, units: Units, curvature: Blocks, variance: Tensor) -> None:
        super().__init__(units)
        self._curvature = curvature
        self._precision = variance.reciprocal()
        precision = units.split(self._precision)
        self._roots = [
            cholesky(add_diagonal(h, p)) for h, p in zip(curvature, precision, strict=True)
        ]
        scales = units.map(diagonal, self._roots)
        self._constant = units.sum(-scales.log() - 0.5 * variance.log())

    def log_mass(self, t: Tensor) -> Tensor:
        whitened = self._units.map(solve, self._roots, t)
        return self._constant + 0.5 * self._units.sum(whitened.square())

    def draw(self, t: Tensor, uniform: Tensor) -> Tensor:
        def color(root: Tensor, t: Tensor, normal: Tensor) -> Tensor:
            return solve(root, solve(root, t) + normal, transpose=True)

        return self._units.map(color, self._roots, t, torch.special.ndtri(uniform))

    def log_likelihood(self, t: Tensor, beta: Tensor) -> Tensor:
        product = self._units.map(multiply, self._curvature, beta)
        return self._units.sum(beta * (t - 0.5 * product))

    def log_prior(self, beta: Tensor) -> Tensor:
        return self._units.sum(-0.5 * self._precision * beta.square())


class LaplaceConditional(Conditional):
    """
    The law under a Laplace component.

    :param Blocks curvature: H, of which the diagonal is used.
    :param Tensor scale: of the component, shape (..., P).
    """

    def __init__(self, units: Units, curvature: Blocks, scale: Tensor) -> None:
        super().__init__(units)
        self._rate = scale.reciprocal()
        self._curvature = torch.maximum(units.map(diagonal, curvature), FLAT * self._rate.square())
        self._root = self._curvature.sqrt()
        constant = (0.5 * self._rate / self._root).log() + 0.5 * math.log(2.0 * math.pi)
        self._constant = units.sum(constant)

    def log_mass(self, t: Tensor) -> Tensor:
        halves = [log_half_mass(z) for z in self._ends(t)]
        return self._constant + self._units.sum(torch.logaddexp(*halves))

    def draw(self, t: Tensor, uniform: Tensor) -> Tensor:
        right, left = self._ends(t)
        share = (log_half_mass(right) - log_half_mass(left)).sigmoid()  # of positive values
        positive = uniform < share
        rest = torch.where(positive, uniform / share, (uniform - share) / (1.0 - share))
        rest = rest.clamp(min=torch.finfo(rest.dtype).tiny)
        size = positive_normal(torch.where(positive, right, left), rest) / self._root
        return torch.where(positive, size, -size)

    def log_likelihood(self, t: Tensor, beta: Tensor) -> Tensor:
        return self._units.sum(beta * (t - 0.5 * self._curvature * beta))

    def log_prior(self, beta: Tensor) -> Tensor:
        return self._units.sum(-self._rate * beta.abs())

    def _ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of the Normals right and left of zero, away from it, over their sd."""
        return (t - self._rate) / self._root, (-t - self._rate) / self._root


def log_half_mass(z: Tensor) -> Tensor:
    r"""Return :math:`\log \Phi(z) + z^2 / 2`, without cancellation."""
    low = (0.5 * torch.special.erfcx(z.clamp(max=0.0) / -math.sqrt(2.0))).log()
    high = z.clamp(min=0.0)
    return torch.where(z < 0.0, low, torch.special.log_ndtr(high) + 0.5 * high.square())


def positive_normal(mean: Tensor, uniform: Tensor) -> Tensor:
    """Turn uniform numbers into draws from Normal(mean, 1) above zero, far tails included."""
    from scipy.special import ndtri_exp  # on request, as it takes time to import

    # P(X > x) = U P(X > 0), and P(X > x) = Phi(mean - x); all in logarithms.
    log_tail = uniform.log() + torch.special.log_ndtr(mean)
    quantile = torch.from_numpy(ndtri_exp(log_tail.cpu().numpy())).to(mean)
    return (mean - quantile).clamp(min=0.0)
