# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The linear-Gaussian model without Monte Carlo: Kalman filter and smoother, and EM by them.

.. math::
    x_1 \\sim N(0, 1), \\quad x_t = a x_{t-1} + N(0, q), \\quad y_t = x_t + N(0, r)

All in NumPy and float64; nothing here knows the kernel.

**References**

[1] R. H. Shumway, D. S. Stoffer (1982), "An approach to time series smoothing and forecasting using
    the EM algorithm", Journal of Time Series Analysis 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any


class Parameters(NamedTuple):
    """
    :param float a: the coefficient.
    :param float q: variance of the state's noise.
    :param float r: variance of the observations' noise.
    """

    a: float
    q: float
    r: float


class Moments(NamedTuple):
    """
    Moments of the path given all observations.

    :param mean: shape (T,).
    :param variance: shape (T,).
    :param lag: covariances of neighbours, shape (T - 1,).
    """

    mean: Array
    variance: Array
    lag: Array


class Priors(NamedTuple):
    """Normal(0, 1) of a; InverseGamma(shape, rate) of q and of r."""

    shape: float
    rate: float


def smoother(y: Array, parameters: Parameters) -> Moments:
    """The path's law given the observations y, shape (T,): Kalman filter, then RTS smoother."""
    a, q, r = parameters
    steps = len(y)
    mean, variance = np.empty(steps), np.empty(steps)
    ahead_mean, ahead = 0.0, 1.0  # of x_t given y before t
    for t in range(steps):
        gain = ahead / (ahead + r)
        mean[t] = ahead_mean + gain * (y[t] - ahead_mean)
        variance[t] = (1.0 - gain) * ahead
        ahead_mean, ahead = a * mean[t], a * a * variance[t] + q
    lag = np.empty(steps - 1)
    for t in reversed(range(steps - 1)):
        ahead = a * a * variance[t] + q
        back = a * variance[t] / ahead
        lag[t] = back * variance[t + 1]
        mean[t] += back * (mean[t + 1] - a * mean[t])
        variance[t] += back * back * (variance[t + 1] - ahead)
    return Moments(mean, variance, lag)


def precision(steps: int, parameters: Parameters) -> Array:
    """The precision matrix of the path given the observations, shape (T, T)."""
    a, q, r = parameters
    diagonal = np.full(steps, (1.0 + a * a) / q + 1.0 / r)
    diagonal[0] += 1.0 - 1.0 / q
    diagonal[-1] -= a * a / q
    beside = np.full(steps - 1, -a / q)
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def m_step(y: Array, moments: Moments, last: Parameters, priors: Priors) -> Parameters:
    """
    One sweep of maximisers of the expected log joint density, each given the others.

    :param y: shape (T,).
    :param Moments moments: of the path.
    :param Parameters last: before the sweep.
    """
    mean, variance, lag = moments
    square = mean**2 + variance
    product = (mean[1:] * mean[:-1] + lag).sum()
    before, after = square[:-1].sum(), square[1:].sum()
    a = (product / last.q) / (before / last.q + 1.0)
    driven = after - 2.0 * a * product + a * a * before
    observed = ((y - mean) ** 2 + variance).sum()
    shape, rate = priors
    q = (rate + driven / 2.0) / (shape + 1.0 + (len(y) - 1) / 2.0)
    r = (rate + observed / 2.0) / (shape + 1.0 + len(y) / 2.0)
    return Parameters(float(a), float(q), float(r))


def em(
    y: Array,
    start: Parameters,
    priors: Priors,
    e_step: Callable[[Array, Parameters], Moments] = smoother,
) -> Parameters:
    """
    EM to its fixed point, at which no parameter moves by more than 1e-12.

    :param e_step: (y, parameters) to the path's moments; another one than the smoother's gives the
        fixed point of a sampler with these moments.
    """
    last = start
    for _ in range(100_000):
        now = m_step(y, e_step(y, last), last, priors)
        if max(abs(new - old) for new, old in zip(now, last, strict=True)) < 1e-12:
            return now
        last = now
    raise ArithmeticError(f"EM has not come to its fixed point in 100,000 sweeps: {last}")


def sampled_moments(
    y: Array, parameters: Parameters, variance_of: Callable[[float], float]
) -> Moments:
    """
    The path's moments under a sampler whose steps are of finite size. It has the exact mean, and in
    each direction of the precision matrix a variance of its own.

    :param variance_of: curvature to the stationary variance; 1 / curvature is exact.
    """
    curvatures, directions = np.linalg.eigh(precision(len(y), parameters))
    variances = np.array([variance_of(float(h)) for h in curvatures])
    covariance = (directions * variances) @ directions.T
    mean = directions @ ((directions.T @ (y / parameters.r)) / curvatures)
    return Moments(mean, covariance.diagonal(), covariance.diagonal(1))


def simulate(steps: int, parameters: Parameters, rng: np.random.Generator) -> tuple[Array, Array]:
    """A path and its observations, both of shape (T,)."""
    a, q, r = parameters
    x = np.empty(steps)
    x[0] = rng.standard_normal()
    for t in range(1, steps):
        x[t] = a * x[t - 1] + np.sqrt(q) * rng.standard_normal()
    return x, x + np.sqrt(r) * rng.standard_normal(steps)
