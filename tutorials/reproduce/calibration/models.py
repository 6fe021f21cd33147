# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The models as Pyro programs, and data for them."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
from torch import Tensor

import pyro_aeb as aeb

from .exact import Array, Prior


def features(size: int, p: int, correlation: float, rng: np.random.Generator) -> Array:
    """Rows of a Normal with covariance correlation^|i - j|, columns scaled to mean square 1."""
    lags = np.abs(np.subtract.outer(np.arange(p), np.arange(p)))
    x = rng.standard_normal((size, p)) @ np.linalg.cholesky(correlation**lags).T
    return x / np.sqrt((x**2).mean(0))


def regression(x: Tensor, y: Tensor, prior: Prior) -> None:
    """One data set. Sigma and delta are sampled unless the prior fixes them."""
    sigma: Tensor | float
    delta: Tensor | float
    if prior.sigma is None:
        sigma = pyro.sample("sigma2", dist.InverseGamma(prior.nu / 2, prior.nu_lambda / 2)).sqrt()
    else:
        sigma = prior.sigma
    delta = pyro.sample("delta", dist.Beta(*prior.beta)) if prior.delta is None else prior.delta
    with pyro.plate("features", x.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(prior.v0, prior.v1, delta, sigma))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def many_regressions(x: Tensor, y: Tensor, prior: Prior) -> None:
    """
    Many data sets with the same features and weights of their own, at fixed sigma and delta.

    Given these the data sets have nothing in common, and the noise of a step is independent from
    weight to weight, so a chain of this model is as many independent chains.

    :param y: shape (data sets, N).
    """
    assert prior.sigma is not None and prior.delta is not None
    with pyro.plate("sets", len(y), dim=-2):
        with pyro.plate("features", x.shape[1], dim=-1):
            beta = pyro.sample("beta", aeb.SSGL(prior.v0, prior.v1, prior.delta, prior.sigma))
        with pyro.plate("data", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(beta @ x.T, prior.sigma), obs=y)
