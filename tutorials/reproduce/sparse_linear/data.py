# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The simulated "large p, small n" problem of Deng, Zhang, Liang and Lin (2019).

    x_i ~ Normal(0, Sigma),  Sigma_jk = 0.6^|j - k|
    y_i = x_i . beta + noise,  noise ~ Normal(0, 3)
    beta_1, beta_2, beta_3 ~ Normal((3, 2, 1), 0.2^2),  all other beta_j = 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CORRELATION = 0.6
NOISE_VARIANCE = 3.0
SIGNAL_MEANS = (3.0, 2.0, 1.0)
SIGNAL_SD = 0.2


@dataclass(frozen=True)
class Size:
    """
    How big a problem to simulate.

    :param int train: observations to learn from, n.
    :param int test: observations to score on.
    :param int features: features, p (at least three: the first three carry the signal).
    """

    train: int = 100
    test: int = 1000
    features: int = 1000

    def __post_init__(self) -> None:
        if self.features < len(SIGNAL_MEANS):
            raise ValueError(
                f"found features={self.features}, expected at least {len(SIGNAL_MEANS)}: "
                "the first three features carry the signal"
            )


@dataclass(frozen=True)
class Problem:
    """
    One simulated data set. A method learns from ``X`` and ``y`` only; the rest is for scoring.

    :param X: training features, shape (n, p).
    :param y: training responses, shape (n,).
    :param X_test: test features, shape (n_test, p).
    :param y_test: test responses with noise, shape (n_test,).
    :param beta: the true coefficients, shape (p,).
    """

    X: Array
    y: Array
    X_test: Array
    y_test: Array
    beta: Array

    @property
    def signals(self) -> list[int]:
        """Positions of the three features that are not zero."""
        return list(range(len(SIGNAL_MEANS)))


def correlated_normals(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """
    Rows from Normal(0, Sigma) with ``Sigma_jk = 0.6^|j - k|``, by the autoregression
    ``x_j = 0.6 x_{j-1} + sqrt(1 - 0.6^2) z_j`` (no p by p matrix is ever formed).

    :param rng: the source of randomness.
    :param int rows: number of rows.
    :param int columns: number of features.
    :returns: array of shape (rows, columns).
    """
    x = rng.standard_normal((rows, columns))
    innovation = np.sqrt(1.0 - CORRELATION**2)
    for j in range(1, columns):
        x[:, j] = CORRELATION * x[:, j - 1] + innovation * x[:, j]
    return x


def simulate(seed: int, size: Size | None = None) -> Problem:
    """
    The data of one replicate. They depend on ``seed`` and ``size`` alone, so that every method sees
    the same data and no method's random numbers can move them.

    :param int seed: the replicate's number, and its seed.
    :param Size size: how big; the full protocol's size by default.
    """
    size = size or Size()
    rng = np.random.default_rng(seed)
    beta = np.zeros(size.features)
    beta[: len(SIGNAL_MEANS)] = rng.normal(SIGNAL_MEANS, SIGNAL_SD)

    def observe(rows: int) -> tuple[Array, Array]:
        X = correlated_normals(rng, rows, size.features)
        return X, X @ beta + np.sqrt(NOISE_VARIANCE) * rng.standard_normal(rows)

    X, y = observe(size.train)
    X_test, y_test = observe(size.test)
    return Problem(X, y, X_test, y_test, beta)
