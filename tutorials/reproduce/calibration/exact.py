# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The exact posterior of a regression with the spike-and-slab prior, by Gibbs sampling.

The model is equation (1) with a Normal likelihood of the same sigma::

    y ~ Normal(X beta, sigma^2),    gamma_j ~ Bernoulli(delta),
    beta_j ~ Laplace(0, sigma v0) if gamma_j = 0, Normal(0, sigma^2 v1) if gamma_j = 1,
    delta ~ Beta(a, b),    sigma^2 ~ InverseGamma(nu / 2, nu lambda / 2).

Every update is a draw from a full conditional:

- (gamma_j, beta_j) together. Given the others the likelihood is Normal in beta_j, so the full
  conditional is a mixture of three: a Normal (gamma_j = 1) and, on either side of 0, a truncated
  Normal.
- delta is Beta.
- u = 1 / sigma has the density u^(m - 1) exp(-b u - c u^2 / 2), drawn by rejection from a Gamma.

Many chains run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtri_exp

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """
    :param v0: Laplace scale over sigma.
    :param v1: variance of the Gaussian component over sigma squared.
    :param beta: of delta ~ Beta(a, b).
    :param nu: of sigma squared.
    :param nu_lambda: nu times lambda.
    :param delta: a number fixes it.
    :param sigma: a number fixes it.
    """

    v0: float
    v1: float
    beta: tuple[float, float] = (1.0, 1.0)
    nu: float = 1.0
    nu_lambda: float = 1.0
    delta: float | None = None
    sigma: float | None = None


@dataclass(frozen=True)
class Draws:
    """Draws of beta and gamma, shape (sweeps, chains, p), and sigma, (sweeps, chains)."""

    beta: Array
    gamma: Array
    sigma: Array
    delta: Array


def gibbs(
    x: Array, y: Array, prior: Prior, chains: int, sweeps: int, warmup: int, seed: int
) -> Draws:
    """
    Draws from the posterior.

    :param x: features, shape (N, p).
    :param y: targets, shape (N,).
    :param Prior prior: the prior.
    :param chains: how many run side by side, from zero weights and delta's prior mean.
    :param sweeps: that are kept of every chain.
    :param warmup: sweeps before them.
    """
    rng = np.random.default_rng(seed)
    gram, cross, total = x.T @ x, x.T @ y, float(y @ y)
    p, size = x.shape[1], len(y)
    beta, gamma = np.zeros((chains, p)), np.zeros((chains, p))
    sigma = np.full(chains, prior.sigma or np.sqrt(total / size))
    delta = np.full(chains, prior.beta[0] / sum(prior.beta) if prior.delta is None else prior.delta)
    kept: list[tuple[Array, Array, Array, Array]] = []
    for sweep in range(warmup + sweeps):
        for j in rng.permutation(p):
            rest = cross[j] - beta @ gram[j] + beta[:, j] * gram[j, j]
            beta[:, j], gamma[:, j] = _draw_weight(rest, gram[j, j], sigma, delta, prior, rng)
        if prior.delta is None:
            ones = gamma.sum(1)
            delta = rng.beta(prior.beta[0] + ones, prior.beta[1] + p - ones)
        if prior.sigma is None:
            error = total - 2 * beta @ cross + np.einsum("ci,ij,cj->c", beta, gram, beta)
            sigma = _draw_scale(error, size, beta, gamma, prior, rng)
            if not np.isfinite(sigma).all():
                raise FloatingPointError(f"sigma of the exact sampler is {sigma} in sweep {sweep}")
        if sweep >= warmup:
            kept.append((beta.copy(), gamma.copy(), sigma, delta))
    return Draws(*(np.stack(values) for values in zip(*kept, strict=True)))


def _draw_weight(
    rest: Array, square: float, sigma: Array, delta: Array, prior: Prior, rng: np.random.Generator
) -> tuple[Array, Array]:
    """
    (beta_j, gamma_j) of every chain given all others.

    The likelihood is exp(-(square beta^2 - 2 rest beta) / 2 sigma^2). Each of the three components
    is (prior weight) exp(linear beta - precision beta^2 / 2), on the line or on a half of it.
    """
    variance = sigma**2
    wide = square / variance + 1 / (variance * prior.v1)
    narrow = square / variance
    tilt = 1 / (sigma * prior.v0)
    mean_wide = rest / variance / wide
    mean_right, mean_left = (rest / variance - tilt) / narrow, (rest / variance + tilt) / narrow
    root = np.sqrt(narrow)
    # Log masses, without the factor sqrt(2 pi) that all have in common.
    slab = np.log(delta) - 0.5 * np.log(2 * np.pi * variance * prior.v1)
    spike = np.log1p(-delta) - np.log(2 * sigma * prior.v0)
    masses = np.stack([
        slab + 0.5 * wide * mean_wide**2 - 0.5 * np.log(wide),
        spike + 0.5 * narrow * mean_right**2 - 0.5 * np.log(narrow) + log_ndtr(mean_right * root),
        spike + 0.5 * narrow * mean_left**2 - 0.5 * np.log(narrow) + log_ndtr(-mean_left * root),
    ])  # fmt: skip
    which = np.argmax(masses + rng.gumbel(size=masses.shape), axis=0)
    uniform = np.log(rng.uniform(size=len(rest)))
    beta = np.select(
        [which == 0, which == 1],
        [
            mean_wide + rng.standard_normal(len(rest)) / np.sqrt(wide),
            _above_zero(mean_right, root, uniform),
        ],
        -_above_zero(-mean_left, root, uniform),
    )
    return beta, (which == 0).astype(float)


def _above_zero(mean: Array, root_precision: Array, log_uniform: Array) -> Array:
    """A Normal truncated to positive numbers, by the inverse of its distribution function."""
    bound = mean * root_precision
    # P(Z > z) = U P(Z > -bound), and P(Z > z) = Phi(-z); all in logarithms.
    return np.maximum(mean - ndtri_exp(log_uniform + log_ndtr(bound)) / root_precision, 0.0)


def _draw_scale(
    error: Array,
    size: int,
    beta: Array,
    gamma: Array,
    prior: Prior,
    rng: np.random.Generator,
) -> Array:
    """
    Sigma of every chain given all others: u = 1 / sigma has the density
    u^(shape - 1) exp(-b u - c u^2 / 2), drawn by rejection from a Gamma.
    """
    shape = prior.nu + size + beta.shape[1]
    c = error + (gamma * beta**2).sum(1) / prior.v1 + prior.nu_lambda
    b = ((1 - gamma) * np.abs(beta)).sum(1) / prior.v0
    mode = (np.sqrt(b**2 + 4 * c * shape) - b) / (2 * c)
    u, waiting = mode, np.ones(len(mode), bool)
    while waiting.any():
        proposal = rng.gamma(shape, 1 / (b + c * mode))
        accepted = np.log(rng.uniform(size=len(mode))) < -c * (proposal - mode) ** 2 / 2
        u = np.where(waiting & accepted, proposal, u)
        waiting &= ~accepted
    return 1 / u
