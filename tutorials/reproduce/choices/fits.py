# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
SGHMC-SA on sparse regressions with as many features as rows, from one setting in the middle, of
which one number at a time is changed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from calibration.exact import Array
from calibration.models import features
from torch import Tensor

import pyro_aeb as aeb

P, ROWS, CORRELATION, SIGMA = 100, 100, 0.5, 1.0
EFFECTS = (0, 20, 40, 60, 80)
TRUTH: Array = np.zeros(P)
TRUTH[list(EFFECTS)] = 1.0, -0.75, 0.5, -0.5, 0.35
COVARIANCE: Array = CORRELATION ** np.abs(np.subtract.outer(np.arange(P), np.arange(P)))
FIGURES = ("kept", "others", "excess", "sigma", "delta", "coverage", "width", "collapsed")


@dataclass(frozen=True)
class Setting:
    """
    :param v0: scale of the spike, in units of sigma.
    :param v1: variance of the slab, in units of sigma squared.
    :param tau: inverse temperature.
    :param a: of delta's prior, Beta(a, P).
    :param omega: weight of the stochastic approximation, a number or a schedule.
    """

    v0: float = 0.05
    v1: float = 4.0
    tau: float = 1.0
    a: float = 2.0
    omega: Any = aeb.Polynomial(10.0, 1000.0, 0.7)


BASE = Setting()
METHODS = {
    "base": BASE,
    **{f"v0 {v0:g}": replace(BASE, v0=v0) for v0 in (0.005, 0.01, 0.02, 0.1, 0.2)},
    **{f"v1 {v1:g}": replace(BASE, v1=v1) for v1 in (0.04, 0.25, 25.0, 1000.0)},
    **{f"tau {tau:g}": replace(BASE, tau=tau) for tau in (0.5, 2.0, 5.0, 20.0)},
    **{f"a {a:g}": replace(BASE, a=a) for a in (1.0, 5.0, 20.0)},
    "omega 1": replace(BASE, omega=1.0),
    "omega 0.1": replace(BASE, omega=0.1),
    "omega 0.01": replace(BASE, omega=0.01),
    "omega 0.001": replace(BASE, omega=0.001),
    "omega 1/k": replace(BASE, omega=aeb.Polynomial(1.0, 0.0, 1.0)),
    "omega 0.1/k": replace(BASE, omega=aeb.Polynomial(0.1, 0.0, 1.0)),
}


@dataclass(frozen=True)
class Protocol:
    """
    :param draws: kept.
    :param warmup: draws before them.
    :param thin: steps between draws.
    """

    draws: int = 400
    warmup: int = 200
    thin: int = 10


SMOKE = Protocol(draws=10, warmup=2, thin=2)


def settings_of(name: str, protocol: Protocol) -> str:
    """Return the settings that decide a fit's figures, beside the seed."""
    return f"{METHODS[name]}; {protocol}"


def step_size(setting: Setting, x: Array) -> float:
    """Small beside the largest curvature's reciprocal and beside the spike's width squared."""
    curvature = np.linalg.eigvalsh(x.T @ x)[-1] / SIGMA**2
    return float(min(0.1 / curvature, 0.3 * (SIGMA * setting.v0) ** 2 / setting.tau))


def model(X: Tensor, y: Tensor, setting: Setting) -> None:
    """Sparse regression with sigma and delta learned."""
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.0, 1.0))
    delta = pyro.sample("delta", dist.Beta(setting.a, float(p)))
    with pyro.plate("features", p):
        prior = aeb.SSGL(setting.v0, setting.v1, delta, sigma2.sqrt())
        beta = pyro.sample("beta", prior)
    with pyro.plate("data", n):
        pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)


def run_one(name: str, seed: int, protocol: Protocol) -> dict[str, float]:
    """
    One chain on one data set.

    :returns: how many of the five effects have an averaged rho above 1/2, how many others; the
        excess of the mean squared error of prediction over the noise's; sigma and delta at the
        end; of the five, the share whose central 90 % interval holds the truth, and its width.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    x = features(ROWS, P, CORRELATION, rng)
    y = x @ TRUTH + rng.normal(0.0, SIGMA, ROWS)
    setting = METHODS[name]
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(step_size(setting, x), friction=0.1),
        adaptation=aeb.StochasticApproximation(setting.omega),
        inverse_temperature=setting.tau,
        steps_per_draw=protocol.thin,
        seed=seed,
    )
    mcmc = aeb.MCMC(kernel, protocol.draws, protocol.warmup, disable_progbar=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mcmc.run(*(torch.tensor(v, dtype=torch.float32) for v in (x, y)), setting)
    beta = mcmc.get_samples()["beta"].double().numpy()
    rho = aeb.to_arviz(mcmc).adaptation["beta_rho"].values[0].mean(0)
    real = TRUTH != 0.0
    error = beta.mean(0) - TRUTH
    low, high = np.quantile(beta[:, real], (0.05, 0.95), axis=0)
    return {
        "kept": float((rho[real] > 0.5).sum()),
        "others": float((rho[~real] > 0.5).sum()),
        "excess": float(error @ COVARIANCE @ error),
        "sigma": float(mcmc.get_samples()["sigma2"][-1].sqrt()),
        "delta": float(mcmc.get_samples()["delta"][-1]),
        "coverage": float(((low <= TRUTH[real]) & (high >= TRUTH[real])).mean()),
        "width": float((high - low).mean()),
        "collapsed": float(any(issubclass(w.category, aeb.CollapseWarning) for w in caught)),
    }
