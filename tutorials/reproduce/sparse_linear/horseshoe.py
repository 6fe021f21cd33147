# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The regularised horseshoe of Piironen and Vehtari (2017), by Pyro's NUTS.

    y ~ Normal(X beta, sigma^2),  beta_j ~ Normal(0, V_j)
    V_j = c^2 s_j^2 / (c^2 + s_j^2),  s_j = tau l_j
    l_j ~ HalfCauchy(1),  tau ~ HalfCauchy(tau_0),  c^2 ~ InverseGamma(2, 2 sd(y)^2)

Given the scales, beta is Normal and can be integrated out: ``y ~ Normal(0, X V X' + sigma^2 I)``.
So NUTS explores the scales alone, which spares it the funnels between beta and its scales, and a
gradient costs one n by n Cholesky factor. beta is then drawn exactly, one draw for each draw of the
scales; its posterior mean is averaged over the conditional means.

**References**

[1] Juho Piironen, Aki Vehtari (2017), "Sparsity information and regularization in the horseshoe and
    other shrinkage priors", Electronic Journal of Statistics 11(2).
[2] Anirban Bhattacharya, Antik Chakraborty, Bani Mallick (2016), "Fast sampling with Gaussian scale
    mixture priors in high-dimensional regression", Biometrika 103(4).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from .data import Problem
from .metrics import INTERVAL, Fit, excludes_zero


@dataclass(frozen=True)
class HorseshoeSettings:
    """
    :param int chains: chains, run one after the other.
    :param int warmup: draws of warm-up of every chain.
    :param int draws: draws kept of every chain.
    :param int tree_depth: cap on NUTS's doublings.
    :param float expected_signals: p_0, which sets tau_0 = p_0 / (p - p_0) sigma / sqrt(n). A guess
        that is deliberately not the truth.
    """

    chains: int = 2
    warmup: int = 150
    draws: int = 250
    tree_depth: int = 6
    expected_signals: float = 10.0


def scales_model(X: Tensor, y: Tensor, expected_signals: float) -> None:
    """
    The scales of the horseshoe, with beta integrated out.

    :param X: features, shape (n, p).
    :param y: responses, shape (n,).
    :param float expected_signals: p_0.
    """
    n, p = X.shape
    sigma = pyro.sample("sigma", dist.HalfNormal(y.std()))
    tau = pyro.sample("tau", dist.HalfCauchy(X.new_ones(())))
    c2 = pyro.sample("c2", dist.InverseGamma(X.new_tensor(2.0), 2.0 * y.var()))
    with pyro.plate("features", p):
        local = pyro.sample("local", dist.HalfCauchy(X.new_ones(())))
    variance = prior_variance(sigma, tau, c2, local, n, expected_signals)
    covariance = (X * variance) @ X.T + sigma**2 * torch.eye(n, dtype=X.dtype)
    pyro.sample("y", dist.MultivariateNormal(X.new_zeros(n), covariance), obs=y)


def prior_variance(
    sigma: Tensor, tau: Tensor, c2: Tensor, local: Tensor, n: int, expected_signals: float
) -> Tensor:
    """V, the variance of every coefficient given the scales, shape (p,)."""
    p = local.shape[-1]
    guess = min(expected_signals, p / 2)
    scale2 = (tau * guess / (p - guess) * sigma) ** 2 / n * local**2
    return c2 * scale2 / (c2 + scale2)


def draw_coefficients(
    X: Tensor, y: Tensor, variance: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """
    One exact draw of beta given its scales, and its conditional mean [2].

    :param X: features, shape (n, p).
    :param y: responses, shape (n,).
    :param variance: V, shape (p,).
    :param sigma: noise scale, a number.
    :returns: the draw and the mean, each of shape (p,).
    """
    covariance = (X * variance) @ X.T + sigma**2 * torch.eye(len(y), dtype=X.dtype)
    factor = torch.linalg.cholesky(covariance)
    prior_draw = variance.sqrt() * torch.randn_like(variance)
    simulated = X @ prior_draw + sigma * torch.randn_like(y)
    targets = torch.stack([y - simulated, y], dim=-1)
    correction, mean = (variance[:, None] * (X.T @ torch.cholesky_solve(targets, factor))).T
    return prior_draw + correction, mean


def horseshoe(problem: Problem, seed: int, settings: HorseshoeSettings | None = None) -> Fit:
    """
    The horseshoe row. Notes: split R-hat and effective sample size of beta_1 to beta_3.

    :param problem: the data set.
    :param int seed: of the chains.
    :param HorseshoeSettings settings: chain lengths.
    """
    settings = settings or HorseshoeSettings()
    pyro.set_rng_seed(seed)
    X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
    draws, means = [], []
    for _ in range(settings.chains):
        kernel = NUTS(
            scales_model,
            jit_compile=True,
            ignore_jit_warnings=True,
            max_tree_depth=settings.tree_depth,
        )
        mcmc = MCMC(kernel, settings.draws, settings.warmup, disable_progbar=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.trace", FutureWarning)
            mcmc.run(X, y, settings.expected_signals)
        pairs = []
        for i in range(settings.draws):
            scales = {name: values[i] for name, values in mcmc.get_samples().items()}
            variance = prior_variance(
                **scales, n=len(y), expected_signals=settings.expected_signals
            )
            pairs.append(draw_coefficients(X, y, variance, scales["sigma"]))
        draws.append(torch.stack([draw for draw, _ in pairs]))
        means.append(torch.stack([mean for _, mean in pairs]))
    chains = torch.stack(draws)  # (chains, draws, p)
    pooled = chains.flatten(0, 1).numpy()
    tails = (0.5 - INTERVAL / 2, 0.5 + INTERVAL / 2)
    interval = np.quantile(pooled, tails, axis=0)
    return Fit(
        coefficients=torch.stack(means).mean((0, 1)).numpy(),
        selected=excludes_zero(interval),
        interval=interval,
        last=pooled[-1],
        notes=chain_quality(chains[..., problem.signals]),
    )


def chain_quality(chains: Tensor) -> dict[str, float]:
    """
    The worst split R-hat and the smallest effective sample size over some variables.

    :param chains: draws, shape (chains, draws, variables).
    """
    rhat = split_gelman_rubin(chains, chain_dim=0, sample_dim=1)
    size = effective_sample_size(chains, chain_dim=0, sample_dim=1)
    return {"rhat": float(rhat.max()), "ess": float(size.min())}
