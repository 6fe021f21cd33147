# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The exact posterior and the kernel on the same data sets, which have the same true weights.

The kernel's chains run side by side, each with latents of its own, from Pyro's initial values.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

import pyro_aeb as aeb

from .exact import Array, Prior, gibbs
from .models import features, regression

P, SIZE, CORRELATION, SIGMA = 20, 60, 0.5, 1.0
TRUTH: Array = np.zeros(P)
TRUTH[[0, 6, 12, 18]] = 1.0, -0.75, 0.5, 0.25

LEARNED = Prior(v0=0.05, v1=4.0, beta=(2.0, 8.0), nu=2.0, nu_lambda=2.0)
FIXED = replace(LEARNED, delta=float((TRUTH != 0.0).mean()), sigma=SIGMA)
INTERVAL = (0.05, 0.95)

METHODS = {
    "exact fixed": "exact, σ and δ at the truth",
    "marginal fixed": "SGHMC on the spike and slab, σ and δ at the truth",
    "adaptive fixed": "SGHMC-SA, σ and δ at the truth",
    "exact": "exact, σ and δ sampled",
    "adaptive": "SGHMC-SA, σ and δ learned",
}
OF_WEIGHTS = ("mean", "sd", "low", "high", "inclusion", "first_low", "first_high")
FIGURES = (
    *(f"{what}_{j}" for what in OF_WEIGHTS for j in range(1, P + 1)),
    *("sigma", "delta", "spread"),
)
"""
Of the draws of all chains, but ``first_low`` and ``first_high``, the interval of the first alone;
``spread`` is by how much a weight's rho differs between chains, the largest of the weights.
"""


@dataclass(frozen=True)
class Protocol:
    """
    :param chains: of the kernel, side by side.
    :param draws: kept of each of them.
    :param warmup: draws before them.
    :param thin: steps between draws.
    :param step: step size over the reciprocal of the likelihood's largest curvature at the truth.
    :param friction: of SGHMC.
    :param exact_chains: of the Gibbs sampler.
    :param exact_sweeps: kept of each of them; half as many come before.
    """

    chains: int = 8
    draws: int = 120
    warmup: int = 60
    thin: int = 10
    step: float = 0.05
    friction: float = 0.1
    exact_chains: int = 100
    exact_sweeps: int = 400


SMOKE = Protocol(chains=2, draws=20, warmup=2, thin=2, exact_chains=10, exact_sweeps=20)


def settings_of(name: str, protocol: Protocol) -> str:
    """Return the settings that decide a fit's figures, beside the seed."""
    assert name in METHODS
    return f"{FIXED if 'fixed' in name else LEARNED}; {protocol}"


def simulate(seed: int) -> tuple[Array, Array]:
    """A data set."""
    rng = np.random.default_rng(seed)
    x = features(SIZE, P, CORRELATION, rng)
    return x, x @ TRUTH + rng.normal(0.0, SIGMA, SIZE)


def run_one(name: str, seed: int, protocol: Protocol) -> dict[str, float]:
    """The figures of a fit."""
    x, y = simulate(seed)
    prior = FIXED if "fixed" in name else LEARNED
    fit = _exact if "exact" in name else _kernel
    return fit(x, y, prior, name, seed, protocol)


def _exact(
    x: Array, y: Array, prior: Prior, name: str, seed: int, protocol: Protocol
) -> dict[str, float]:
    chains, sweeps = protocol.exact_chains, protocol.exact_sweeps
    draws = gibbs(x, y, prior, chains, sweeps, sweeps // 2, seed)
    rho = draws.gamma.mean((0, 1))
    return _figures(draws.beta, rho) | {
        "sigma": float(draws.sigma.mean()),
        "delta": float(draws.delta.mean()),
    }


def _kernel(
    x: Array, y: Array, prior: Prior, name: str, seed: int, protocol: Protocol
) -> dict[str, float]:
    curvature = np.linalg.eigvalsh(x.T @ x)[-1] / SIGMA**2
    omega = aeb.Polynomial(3.0, 10.0, 0.75)
    kernel = aeb.AEBKernel(
        regression,
        aeb.SGHMC(protocol.step / curvature, protocol.friction),
        None if "marginal" in name else aeb.StochasticApproximation(omega),
        steps_per_draw=protocol.thin,
        seed=1000 * seed,
    )
    mcmc = aeb.MCMC(
        kernel,
        protocol.draws,
        protocol.warmup,
        num_chains=protocol.chains,
        chain_method="vectorized",
        disable_progbar=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", aeb.CollapseWarning)
        mcmc.run(*(torch.tensor(v, dtype=torch.float32) for v in (x, y)), prior)
    samples = {k: v.double() for k, v in mcmc.get_samples(group_by_chain=True).items()}
    beta = samples["beta"].numpy().swapaxes(0, 1)
    figures: dict[str, float] = {}
    if "marginal" in name:  # P(gamma = 1 | y) is the mean over draws of P(gamma = 1 | beta)
        slab = aeb.SSGL(prior.v0, prior.v1, prior.delta, prior.sigma)
        rho = slab.inclusion(samples["beta"]).mean((0, 1)).numpy()
    else:
        by_chain = kernel.latents.rho.double().numpy()
        rho = by_chain.mean(0)
        figures["spread"] = float(np.ptp(by_chain, axis=0).max())
    if prior.sigma is None:
        figures["sigma"] = float(samples["sigma2"].sqrt().mean())
        figures["delta"] = float(samples["delta"].mean())
    low, high = np.quantile(beta[:, 0], INTERVAL, axis=0)
    return _figures(beta, rho) | _by_weight(first_low=low, first_high=high) | figures


def _figures(beta: Array, rho: Array) -> dict[str, float]:
    """Return the figures of draws, shape (draws, chains, p), and of rho, shape (p,)."""
    flat = beta.reshape(-1, beta.shape[-1])
    low, high = np.quantile(flat, INTERVAL, axis=0)
    return _by_weight(mean=flat.mean(0), sd=flat.std(0), low=low, high=high, inclusion=rho)


def _by_weight(**values: Array) -> dict[str, float]:
    """Arrays of shape (p,) as figures."""
    return {f"{name}_{j}": float(v[j - 1]) for name, v in values.items() for j in range(1, P + 1)}
