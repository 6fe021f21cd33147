# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Simulation-based calibration [1] of the weights, at hyperparameters that are the truth.

Weights are drawn from the prior, data from the weights, and the sampler's draws given the data. If
it samples the posterior, the rank of the true weight among draws that are nearly independent is
uniform. Thousands of data sets are sampled at once; for each weight a chi-square test compares the
counts of ranks with equal ones.

[1] S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman (2018), "Validating Bayesian
inference algorithms with simulation-based calibration", arXiv 1804.06788.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

import pyro_aeb as aeb

from .exact import Array, Prior
from .models import features, many_regressions

P, SIZE, CORRELATION = 4, 30, 0.5
LEVEL = 0.01
"""Level of the test of all weights of a run together: each is tested at a fourth of it."""

PRIOR = Prior(v0=0.2, v1=4.0, sigma=1.0, delta=0.5)
RHO: Array = np.array([0.05, 0.35, 0.65, 0.95])
"""The inclusion probabilities of frozen latents."""


@dataclass(frozen=True)
class Setting:
    """
    :param label: for tables.
    :param transition: the sampler, its step size in units of 1 over the largest curvature of the
        likelihood.
    :param thin: steps between kept draws.
    :param frozen: whether the prior is that of Q at frozen latents, exp(-kappa0 |beta| / sigma -
        kappa1 beta^2 / 2 sigma^2), else the spike and slab itself.
    :param tau: inverse temperature.
    :param sound: whether the ranks should be uniform.
    """

    label: str
    transition: type[aeb.SGLD] | type[aeb.SGHMC]
    step: float
    thin: int
    frozen: bool = False
    tau: float = 1.0
    options: tuple[tuple[str, float], ...] = ()
    sound: bool = True


_SGHMC = (("friction", 0.3),)
SETTINGS = {
    "sgld": Setting("SGLD, spike and slab", aeb.SGLD, 0.05, 400),
    "sghmc": Setting("SGHMC, spike and slab", aeb.SGHMC, 0.05, 150, options=_SGHMC),
    "sgld frozen": Setting("SGLD, latents frozen", aeb.SGLD, 0.05, 400, frozen=True),
    "sghmc frozen": Setting("SGHMC, latents frozen", aeb.SGHMC, 0.05, 150, True, options=_SGHMC),
    "large step": Setting("SGLD, step 20 times as large", aeb.SGLD, 1.0, 400, sound=False),
    "cold": Setting("SGHMC, τ = 1.5", aeb.SGHMC, 0.05, 150, tau=1.5, options=_SGHMC, sound=False),
}


@dataclass(frozen=True)
class Protocol:
    """
    :param sets: data sets.
    :param draws: kept of every posterior; ranks are 0 to this number.
    :param warmup: draws before them.
    :param shorten: thinning is divided by this.
    """

    sets: int = 2000
    draws: int = 19
    warmup: int = 3
    shorten: int = 1


FIGURES = (
    *(f"count_{j}_{r}" for j in range(1, P + 1) for r in range(Protocol.draws + 1)),
    *(f"p_{j}" for j in range(1, P + 1)),
    "autocorrelation",
)
SMOKE = Protocol(sets=100, warmup=1, shorten=20)


@dataclass(frozen=True)
class Ranks:
    """
    :param counts: how often each rank occurred, shape (p, draws + 1).
    :param p_values: of the chi-square test, shape (p,).
    :param autocorrelation: of consecutive kept draws, about their mean over a data set's posterior,
        the largest of the weights.
    """

    counts: Array
    p_values: Array
    autocorrelation: float

    @property
    def p_value(self) -> float:
        """Return the p value of uniform ranks, by Bonferroni's inequality."""
        return min(1.0, float(self.p_values.min() * len(self.p_values)))


def settings_of(name: str, protocol: Protocol) -> str:
    """Return the settings that decide a row's figures, beside the seed."""
    setting = SETTINGS[name]
    return f"{setting}; {protocol}"


def run_one(name: str, seed: int, protocol: Protocol) -> dict[str, float]:
    """The figures of a row."""
    found = calibrate(SETTINGS[name], seed, protocol)
    counts = {f"count_{j}_{r}": n for j, row in enumerate(found.counts, 1)
              for r, n in enumerate(row)}  # fmt: skip
    p_values = {f"p_{j}": p for j, p in enumerate(found.p_values, 1)}
    return {**counts, **p_values, "autocorrelation": found.autocorrelation}


def draw_prior(setting: Setting, sets: int, rng: np.random.Generator) -> Array:
    """True weights, shape (sets, p)."""
    sigma, delta, shape = PRIOR.sigma, PRIOR.delta, (sets, P)
    assert sigma is not None and delta is not None
    if not setting.frozen:
        wide = rng.uniform(size=shape) < delta
        gauss = rng.normal(0.0, sigma * PRIOR.v1**0.5, shape)
        return np.where(wide, gauss, rng.laplace(0.0, sigma * PRIOR.v0, shape))
    # |beta| is a Normal of mean -kappa0 sigma / kappa1 and variance sigma^2 / kappa1, above 0.
    kappa0, kappa1 = (1 - RHO) / PRIOR.v0, RHO / PRIOR.v1
    mean, scale = -kappa0 * sigma / kappa1, sigma / np.sqrt(kappa1)
    size = stats.truncnorm.rvs(-mean / scale, np.inf, mean, scale, shape, random_state=rng)
    return size * rng.choice([-1.0, 1.0], shape)


def design(rng: np.random.Generator) -> tuple[Array, Array]:
    """The features, and the eigenvalues of the likelihood's curvature, rising."""
    assert PRIOR.sigma is not None
    x = features(SIZE, P, CORRELATION, rng)
    return x, np.linalg.eigvalsh(x.T @ x) / PRIOR.sigma**2


def calibrate(setting: Setting, seed: int, protocol: Protocol) -> Ranks:
    """Runs the sampler on every data set, and ranks the true weights among its draws."""
    rng = np.random.default_rng(seed)
    x, curvature = design(rng)
    truth = draw_prior(setting, protocol.sets, rng)
    y = truth @ x.T + rng.normal(0.0, PRIOR.sigma, (protocol.sets, SIZE))
    rho = torch.tensor(RHO, dtype=torch.float32).expand(protocol.sets, P)
    latents = aeb.StochasticApproximation(0.0, {"beta": rho})
    kernel = aeb.AEBKernel(
        many_regressions,
        setting.transition(setting.step / curvature[-1], **dict(setting.options)),
        latents if setting.frozen else None,
        inverse_temperature=setting.tau,
        steps_per_draw=max(setting.thin // protocol.shorten, 1),
        seed=seed,
        save=["beta"],
    )
    mcmc = aeb.MCMC(kernel, protocol.draws, protocol.warmup, disable_progbar=True)
    mcmc.run(*(torch.tensor(v, dtype=torch.float32) for v in (x, y)), PRIOR)
    draws = mcmc.get_samples()["beta"].double().numpy()
    ranks = (draws < truth).sum(0)
    counts = np.stack([np.bincount(r, minlength=protocol.draws + 1) for r in ranks.T])
    return Ranks(counts, stats.chisquare(counts, axis=1).pvalue, autocorrelation(draws))


def autocorrelation(draws: Array) -> float:
    """
    The correlation of consecutive draws of a data set, over data sets, largest of the weights. With
    the mean over few draws taken off it is off by about -1 / draws, which is put back.
    """
    centred = draws - draws.mean(0)
    products = (centred[1:] * centred[:-1]).mean((0, 1)) / (centred**2).mean((0, 1))
    return float(products.max() + 1 / len(draws))


def power(ratio: float, protocol: Protocol, level: float = LEVEL / P) -> float:
    """
    The probability that the test of one weight rejects where the draws are Normal with the right
    mean and a variance that is the true one's times ``ratio``.
    """
    at = np.linspace(-8.0, 8.0, 4001)
    below = stats.norm.cdf(at / np.sqrt(ratio))[:, None]
    cells = stats.binom.pmf(np.arange(protocol.draws + 1), protocol.draws, below)
    chance = stats.norm.pdf(at) @ cells * (at[1] - at[0])
    uniform = 1 / (protocol.draws + 1)
    excess = protocol.sets * ((chance - uniform) ** 2 / uniform).sum()
    return float(stats.ncx2.sf(stats.chi2.isf(level, protocol.draws), protocol.draws, excess))


def variance_ratio(setting: Setting, curvature: float, largest: float) -> float:
    """
    The variance of the chain with its step over that of its target at tau = 1, in a direction of
    this curvature, where the target is Normal.

    :param largest: the largest curvature, which the step size is in units of.
    """
    step = setting.step / largest
    if setting.transition is aeb.SGLD:
        found = aeb.testing.sgld_variance(step, setting.tau, curvature)
    else:
        friction = dict(setting.options)["friction"]
        found = aeb.testing.sghmc_covariance(step, setting.tau, curvature, friction)[1, 1]
    return float(found / aeb.testing.target_variance(1.0, curvature))
