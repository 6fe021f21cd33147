# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Models whose posterior is known: regressions, a classification, and the eight schools."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


class Bed(NamedTuple):
    """
    A model with data, and the exact mean and sd of every weight.

    :param draws: turns the draws of a run into those of the weights, shape (n, M).
    :param batched: whether the model sees some of the data at each step, which NUTS cannot.
    :param start: first values of sites, in unconstrained space.
    """

    model: Callable[..., None]
    arguments: tuple[Tensor, ...]
    mean: Tensor
    sd: Tensor
    draws: Callable[[dict[str, Tensor]], Tensor]
    batched: bool = False
    start: dict[str, Tensor] | None = None


def linear(
    seed: int,
    correlation: float,
    batch: int | None = None,
    unit: float = 1.0,
    outcome: float = 1.0,
    far: bool = False,
) -> Bed:
    """
    Return a regression of 400 data on 60 features with scales from 0.01 to 100.

    :param unit: by which the features are multiplied.
    :param outcome: by which y is.
    :param far: start 100 sds from the mean.
    """
    generator = torch.Generator().manual_seed(seed)
    n, p = 400, 60
    common = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    X = torch.randn(n, p, dtype=torch.float64, generator=generator)
    scale = torch.logspace(-2.0, 2.0, p, dtype=torch.float64) * unit
    X = ((1.0 - correlation) ** 0.5 * X + correlation**0.5 * common) * scale
    beta = 0.3 * torch.randn(p, dtype=torch.float64, generator=generator) / scale
    y = outcome * (X @ beta + torch.randn(n, dtype=torch.float64, generator=generator))
    width = 100.0 * outcome / unit

    def model(X: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(p), width).to_event(1))
        with pyro.plate("data", n, subsample_size=batch) as i:
            rows = slice(None) if batch is None else i
            pyro.sample("y", dist.Normal(X[rows] @ beta, outcome), obs=y[rows])

    covariance = torch.linalg.inv(X.T @ X / outcome**2 + torch.eye(p) / width**2)
    mean, sd = covariance @ X.T @ y / outcome**2, covariance.diagonal().sqrt()
    start = {"beta": (mean + 100.0 * sd).float()} if far else None
    data = (X.float(), y.float())
    return Bed(model, data, mean, sd, lambda draws: draws["beta"], batch is not None, start)


def logistic(seed: int, batch: int | None = 100) -> Bed:
    """Return a classification of 5,000 data with 50 features."""
    generator = torch.Generator().manual_seed(seed)
    n, p = 5000, 50
    X = torch.randn(n, p, generator=generator)
    beta = 0.5 * torch.randn(p, generator=generator)
    y = torch.bernoulli(torch.sigmoid(X @ beta), generator=generator)

    def model(X: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(p), 10.0).to_event(1))
        with pyro.plate("data", n, subsample_size=batch) as i:
            rows = slice(None) if batch is None else i
            pyro.sample("y", dist.Bernoulli(logits=X[rows] @ beta), obs=y[rows])

    mean, sd = importance_sample(X.double(), y.double(), 0.01, generator)
    return Bed(model, (X, y), mean, sd, lambda draws: draws["beta"], batch is not None)


def importance_sample(
    X: Tensor, y: Tensor, precision: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return mean and sd of a logistic posterior, by weighted draws around its mode."""
    beta, eye = X.new_zeros(X.shape[1]), torch.eye(X.shape[1], dtype=X.dtype)
    for _ in range(20):
        share = torch.sigmoid(X @ beta)
        curvature = X.T @ (X * (share * (1.0 - share))[:, None]) + precision * eye
        beta = beta + torch.linalg.solve(curvature, X.T @ (y - share) - precision * beta)
    root = torch.linalg.cholesky(torch.linalg.inv(curvature))
    z = torch.randn(10_000, len(beta), dtype=X.dtype, generator=generator)
    draws = beta + z @ root.T
    logits = draws @ X.T
    log_density = logits @ y - torch.nn.functional.softplus(logits).sum(-1)
    log_density = log_density - 0.5 * precision * draws.square().sum(-1)
    weight = torch.softmax(log_density + 0.5 * z.square().sum(-1), 0)[:, None]
    mean = (weight * draws).sum(0)
    return mean, (weight * (draws - mean).square()).sum(0).sqrt()


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(centred: bool) -> Bed:
    """Return the eight schools, of mean and sd by quadrature over mu and log tau."""

    def model(errors: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, errors), obs=y)

    def of_draws(draws: dict[str, Tensor]) -> Tensor:
        mu, tau = draws["mu"], draws["tau"]
        theta = draws["theta"] if centred else mu[:, None] + tau[:, None] * draws["eta"]
        return torch.cat([mu[:, None], tau.log()[:, None], theta], 1)

    mu = torch.linspace(-25.0, 35.0, 601, dtype=torch.float64)[:, None]
    tau = torch.linspace(-9.0, 6.0, 1501, dtype=torch.float64).exp()[None]
    log = -0.5 * (mu / 5.0) ** 2 - torch.log1p((tau / 5.0) ** 2) + tau.log()
    for y, error in zip(EFFECTS.double(), ERRORS.double(), strict=True):
        variance = error**2 + tau**2
        log = log - 0.5 * ((y - mu) ** 2 / variance + variance.log())
    weight = torch.softmax(log.flatten(), 0).reshape(log.shape)
    first, second = [mu + 0 * tau, tau.log() + 0 * mu], [mu**2 + 0 * tau, tau.log() ** 2 + 0 * mu]
    for y, error in zip(EFFECTS.double(), ERRORS.double(), strict=True):
        precision = error**-2 + tau**-2
        centre = (y / error**2 + mu / tau**2) / precision
        first.append(centre)
        second.append(centre**2 + 1.0 / precision)
    mean = torch.stack([(weight * value).sum() for value in first])
    square = torch.stack([(weight * value).sum() for value in second])
    return Bed(model, (ERRORS, EFFECTS), mean, (square - mean**2).sqrt(), of_draws)


BEDS: dict[str, Callable[[int], Bed]] = {
    "linear": lambda seed: linear(seed, 0.0),
    "linear, correlation 0.5": lambda seed: linear(seed, 0.5),
    "linear, correlation 0.9": lambda seed: linear(seed, 0.9),
    "linear, X times 1000": lambda seed: linear(seed, 0.0, unit=1e3),
    "linear, X times 0.001": lambda seed: linear(seed, 0.0, unit=1e-3),
    "linear, y times 1000": lambda seed: linear(seed, 0.0, outcome=1e3),
    "linear, y times 0.001": lambda seed: linear(seed, 0.0, outcome=1e-3),
    "linear, started 100 sds away": lambda seed: linear(seed, 0.0, far=True),
    "linear, batches of 40": lambda seed: linear(seed, 0.0, batch=40),
    "linear, correlation 0.5, batches of 40": lambda seed: linear(seed, 0.5, batch=40),
    "linear, correlation 0.9, batches of 40": lambda seed: linear(seed, 0.9, batch=40),
    "logistic": lambda seed: logistic(seed, None),
    "logistic, batches of 100": logistic,
    "eight schools, not centred": lambda seed: schools(False),
    "eight schools, centred": lambda seed: schools(True),
}
"""Regressions have 60 features of scales from 0.01 to 100, classifications 50 features."""
