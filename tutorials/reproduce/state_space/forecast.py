# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A nonlinear series, its one-step-ahead forecasts by particle filter, and how good they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FORECAST_HEADER = [
    "seed",
    *(
        f"{what}, {who}"
        for what in ("RMSE", "log density")
        for who in ("linear", "network", "truth")
    ),
    "q (0.16)",
    "r (0.10)",
    "path RMSE",
    "90 % intervals of the path hold",
]


class Forecasts(NamedTuple):
    """
    Forecasts of every observation from the earlier ones, under each of D models.

    :param mean: shape (D, T).
    :param log_density: of what was observed, shape (D, T).
    """

    mean: Any
    log_density: Any


class Score(NamedTuple):
    """
    Over a stretch of the series.

    :param float rmse: root mean squared error of the mean forecast.
    :param float log_density: mean log predictive density, in nats.
    """

    rmse: float
    log_density: float


@torch.no_grad()
def forecast(
    y: Tensor,
    transition: Callable[[Tensor], Tensor],
    q: Tensor,
    r: Tensor,
    particles: int,
    seed: int,
) -> Forecasts:
    """
    Bootstrap particle filters of D models side by side, with systematic resampling at every step.

    :param y: observations, shape (T,).
    :param transition: of states, shape (D, particles).
    :param q: variances of the state's noise, shape (D,).
    :param r: variances of the observations' noise, shape (D,).
    :param int particles: of each model.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(q), particles)
    like = {"generator": generator, "dtype": q.dtype}
    x = torch.randn(shape, **like)
    comb = torch.arange(particles, dtype=q.dtype)
    means, densities = [], []
    for t in range(len(y)):
        if t:
            x = transition(x) + q.sqrt()[:, None] * torch.randn(shape, **like)
        means.append(x.mean(-1))
        log_weight = torch.distributions.Normal(x, r.sqrt()[:, None]).log_prob(y[t])
        densities.append(log_weight.logsumexp(-1) - float(np.log(particles)))
        heights = log_weight.softmax(-1).cumsum(-1)
        teeth = (comb + torch.rand(len(q), 1, **like)) / particles
        chosen = torch.searchsorted(heights, teeth).clamp(max=particles - 1)
        x = x.gather(-1, chosen)
    return Forecasts(torch.stack(means, -1).numpy(), torch.stack(densities, -1).numpy())


def score(y: Tensor, forecasts: Forecasts, start: int) -> Score:
    """
    Score the average over the models: the mean of their means, the mixture of their densities.

    :param int start: the first observation that counts.
    """
    error = forecasts.mean.mean(0)[start:] - y[start:].numpy()
    log_density = np.logaddexp.reduce(forecasts.log_density, axis=0) - np.log(len(forecasts.mean))
    return Score(float(np.sqrt(np.mean(error**2))), float(log_density[start:].mean()))


def forecast_row(
    seed: int, x: Any, draws: Mapping[str, Any], scores: Mapping[str, Score]
) -> list[str]:
    """
    A line under ``FORECAST_HEADER``.

    :param x: the true path, of which the draws' is the beginning.
    :param draws: shape (chains, draws, ...).
    :param scores: of the linear model, the network and the truth.
    """
    paths = draws["x"].reshape(-1, draws["x"].shape[-1])
    x = x[: paths.shape[-1]]
    low, high = np.quantile(paths, (0.05, 0.95), axis=0)
    numbers = [value.rmse for value in scores.values()]
    numbers += [value.log_density for value in scores.values()]
    numbers += [draws["q"].mean(), draws["r"].mean()]
    numbers += [np.sqrt(np.mean((paths.mean(0) - x) ** 2))]
    inside = np.mean((low <= x) & (x <= high))
    return [str(seed), *(f"{number:.3f}" for number in numbers), f"{inside:.0%}"]


def simulate(
    steps: int,
    motion: Callable[[float], float],
    q: float,
    r: float,
    rng: np.random.Generator,
) -> tuple[Any, Any]:
    """A path that starts at Normal(0, 1) and moves by a law, and its observations, shape (T,)."""
    x = np.empty(steps)
    x[0] = rng.standard_normal()
    for t in range(1, steps):
        x[t] = motion(x[t - 1]) + np.sqrt(q) * rng.standard_normal()
    return x, x + np.sqrt(r) * rng.standard_normal(steps)
