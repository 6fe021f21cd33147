# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A regression with the conjugate prior, its exact posterior, and the bias of SGLD on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

ROWS, FEATURES, BATCH = 200, 4, 20
PRIOR_SD = 3.0  # of a coefficient, in units of sigma
SHAPE, SCALE = 3.0, 2.0  # of sigma squared's inverse gamma prior


def simulate(seed: int) -> tuple[Tensor, Tensor]:
    """Orthogonal features of unit variance, so that every direction has the same curvature."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.linalg.qr(torch.randn(ROWS, FEATURES, generator=generator)).Q * math.sqrt(ROWS)
    truth = torch.tensor([1.0, -0.5, 0.25, 0.0])
    return X, X @ truth + torch.randn(ROWS, generator=generator)


@dataclass(frozen=True)
class Exact:
    """
    The posterior: beta is multivariate t, sigma squared inverse gamma.

    :param mean: of beta, shape (FEATURES,).
    :param variance: of beta over that of sigma squared's mean, shape (FEATURES,).
    :param float shape: of sigma squared.
    :param float scale: of sigma squared.
    """

    mean: Any
    variance: Any
    shape: float
    scale: float

    @classmethod
    def of(cls, X: Tensor, y: Tensor) -> Exact:
        features, target = X.double().numpy(), y.double().numpy()
        precision = features.T @ features + np.eye(FEATURES) / PRIOR_SD**2
        mean = np.linalg.solve(precision, features.T @ target)
        left = target @ target - mean @ precision @ mean
        variance = np.diag(np.linalg.inv(precision))
        return cls(mean, variance, SHAPE + ROWS / 2, SCALE + left / 2)

    @property
    def sigma2(self) -> Any:
        return stats.invgamma(self.shape, scale=self.scale)

    @property
    def beta(self) -> Any:
        scale = np.sqrt(self.scale / self.shape * self.variance)
        return stats.t(2 * self.shape, loc=self.mean, scale=scale)

    @property
    def curvature(self) -> float:
        """Curvature of -log posterior along each coefficient, at the mean of sigma squared."""
        return float((ROWS + PRIOR_SD**-2) / self.sigma2.mean())


def excess(relative: float, batch_size: int | None) -> float:
    """
    The variance of SGLD's draws over the posterior's, along a direction of one curvature h. A
    batch is drawn without replacement, and independently of the others.

    :param float relative: epsilon h.
    :param batch_size: n; None for all rows.
    """
    noise = 0.0 if batch_size is None else ROWS / batch_size - 1.0
    return (1.0 + relative * noise / 2.0) / (1.0 - relative / 2.0)


def variance_ratio(beta: Any, exact: Exact) -> float:
    """
    The draws' mean square about the exact mean over the exact variance, mean over coefficients.

    :param beta: draws, shape (draws, FEATURES).
    :param Exact exact: the posterior.
    """
    return float(np.mean(((beta - exact.mean) ** 2).mean(0) / exact.beta.var()))
