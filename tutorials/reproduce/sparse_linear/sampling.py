# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The SG-MCMC rows: Pyro models, run by :class:`pyro_aeb.AEBKernel` through :class:`pyro.infer.MCMC`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value
from pyro.ops.stats import effective_sample_size
from torch import Tensor

import pyro_aeb as aeb

from .classical import RIDGE_PRIOR_VARIANCE
from .data import NOISE_VARIANCE, Array, Problem
from .metrics import INTERVAL, Fit, excludes_zero
from .recommended import residual_scale

STEPS_PER_DRAW = 100
WARMUP_SHARE = 0.2

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class SparseSettings:
    """
    Everything that decides a run of the SSGL model, apart from the chain's length and seed.

    :param float v0: scale of the Laplace component, in units of sigma.
    :param float v1: variance of the Gaussian component, in units of sigma squared.
    :param step_size: of SGLD (or of SGHMC, where ``friction`` is given).
    :param weight: the stochastic approximation's omega.
    :param float a: first parameter of delta's Beta prior.
    :param b: its second parameter; None for p.
    :param float nu: degrees of freedom of sigma squared's prior, InverseGamma(nu/2, nu lambda/2).
    :param lam: lambda, the prior's guess of sigma squared; None for the square of
        :func:`~recommended.residual_scale`, where the chain then starts too.
    :param inverse_temperature: tau, a number or a schedule. Above 1 the draws are narrower than the
        posterior: the posterior mean is sharper, the intervals are too short.
    :param int batch_size: rows in a minibatch; None for all rows at every step.
    :param friction: of SGHMC; None for SGLD.
    :param float first_sigma: where sigma starts.
    :param float first_delta: where delta and all rho start.
    :param float first_beta_sd: beta starts from Normal(0, first_beta_sd^2).
    :param first_penalty: where kappa_0 and kappa_1 start; None for equation (5).
    """

    v0: float
    v1: float
    step_size: Schedule
    weight: Schedule | float
    a: float = 1.0
    b: float | None = None
    nu: float = 1.0
    lam: float | None = 1.0
    inverse_temperature: Schedule | float = 1.0
    batch_size: int | None = 50
    friction: float | None = None
    first_sigma: float = 1.0
    first_delta: float = 0.5
    first_beta_sd: float = 0.1
    first_penalty: float | None = None


#: SGLD-SA as published.
PAPER = SparseSettings(
    v0=0.1,
    v1=10.0,
    step_size=aeb.Polynomial(scale=1e-3, offset=0.0, power=1 / 3),
    weight=aeb.Polynomial(scale=10.0, offset=1000.0, power=0.7),
    first_penalty=1.0,
)


def sparse_model(
    X: Tensor,
    y: Tensor | None = None,
    batch_size: int | None = None,
    *,
    v0: float,
    v1: float,
    a: float,
    b: float,
    nu: float,
    lam: float,
) -> Tensor:
    """
    Linear regression under the spike-and-slab Gaussian-Laplace prior; sigma is both the noise scale
    and the prior's unit.

    :param X: features, shape (n, p).
    :param y: responses, shape (n,); None to predict them.
    :param batch_size: rows in a minibatch.
    :param float v0, v1, a, b, nu, lam: the prior's numbers, see :class:`SparseSettings`.
    """
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(nu / 2, nu * lam / 2))
    delta = pyro.sample("delta", dist.Beta(a, b))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(v0=v0, v1=v1, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        return pyro.sample(
            "y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=None if y is None else y[i]
        )


def gaussian_model(X: Tensor, y: Tensor | None = None, batch_size: int | None = None) -> Tensor:
    """
    Linear regression under a Normal prior and a known noise variance: the model whose exact
    posterior is :func:`~classical.ridge`.

    :param X: features, shape (n, p).
    :param y: responses, shape (n,); None to predict them.
    :param batch_size: rows in a minibatch.
    """
    n, p = X.shape
    with pyro.plate("features", p):
        beta = pyro.sample("beta", dist.Normal(0.0, RIDGE_PRIOR_VARIANCE**0.5))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        return pyro.sample(
            "y", dist.Normal(X[i] @ beta, NOISE_VARIANCE**0.5), obs=None if y is None else y[i]
        )


def tensors(problem: Problem) -> tuple[Tensor, Tensor]:
    """The training half as float32 tensors, X of shape (n, p) and y of shape (n,)."""
    return torch.from_numpy(problem.X).float(), torch.from_numpy(problem.y).float()


def first_values(settings: SparseSettings, features: int, seed: int) -> dict[str, Tensor]:
    """Return a chain's first values, by site name; beta has shape (features,)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "beta": settings.first_beta_sd * torch.randn(features, generator=generator),
        "sigma2": torch.tensor(settings.first_sigma**2),
        "delta": torch.tensor(settings.first_delta),
    }


def sparse_kernel(settings: SparseSettings, features: int, seed: int) -> aeb.AEBKernel:
    """
    The kernel of one SSGL row.

    :param SparseSettings settings: what to run.
    :param int features: p.
    :param int seed: of first values, minibatches and noise.
    """
    transition = (
        aeb.SGLD(settings.step_size)
        if settings.friction is None
        else aeb.SGHMC(settings.step_size, friction=settings.friction)
    )
    return aeb.AEBKernel(
        sparse_model,
        transition,
        adaptation=aeb.StochasticApproximation(
            settings.weight,
            initial_inclusion=settings.first_delta,
            initial_penalty=settings.first_penalty,
        ),
        inverse_temperature=settings.inverse_temperature,
        steps_per_draw=STEPS_PER_DRAW,
        init_strategy=init_to_value(values=first_values(settings, features, seed)),
        seed=seed,
    )


def prior_numbers(settings: SparseSettings, features: int) -> dict[str, float | None]:
    """The keyword arguments of :func:`sparse_model`."""
    b = float(features) if settings.b is None else settings.b
    return {
        "v0": settings.v0,
        "v1": settings.v1,
        "a": settings.a,
        "b": b,
        "nu": settings.nu,
        "lam": settings.lam,
    }


def chain_lengths(steps: int) -> dict[str, int]:
    """Draws of warm-up (a fifth) and draws kept, for a chain of so many steps in all."""
    draws = max(steps // STEPS_PER_DRAW, 5)
    warmup = round(WARMUP_SHARE * draws)
    return {"num_samples": draws - warmup, "warmup_steps": warmup}


def run_sparse(
    problem: Problem, settings: SparseSettings, steps: int, seed: int, progress: bool = False
) -> MCMC:
    """
    Runs the SSGL model on the training half.

    :param Problem problem: the data set.
    :param SparseSettings settings: what to run.
    :param int steps: length of the chain, warm-up included.
    :param int seed: of the chain.
    :param bool progress: whether to show Pyro's progress bar.
    """
    X, y = tensors(problem)
    p = X.shape[1]
    if settings.lam is None:
        sigma = residual_scale(X, y)
        settings = replace(settings, lam=sigma**2, first_sigma=sigma)
    batch = settings.batch_size and min(settings.batch_size, len(y))
    mcmc = MCMC(
        sparse_kernel(settings, p, seed), **chain_lengths(steps), disable_progbar=not progress
    )
    mcmc.run(X, y, batch_size=batch, **prior_numbers(settings, p))
    return mcmc


def wide_inclusion(rho: Array, v0: float, v1: float) -> Array:
    """
    Averaged probability that a weight is of the wider component.

    :param rho: probabilities of the Gaussian component, shape (draws, p).
    :param float v0: scale of the Laplace; its standard deviation is sqrt(2) v0, in units of sigma.
    :param float v1: variance of the Gaussian, in units of sigma squared.
    :returns: array of shape (p,).
    """
    mean = rho.mean(0)
    return mean if v1 > 2.0 * v0**2 else 1.0 - mean


def sparse_regression(problem: Problem, settings: SparseSettings, steps: int, seed: int) -> Fit:
    """One SSGL row; see :func:`run_sparse` for the arguments."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", aeb.CollapseWarning)
        mcmc = run_sparse(problem, settings, steps, seed)
    samples: dict[str, Any] = mcmc.get_samples()
    rho = aeb.to_arviz(mcmc).adaptation["beta_rho"].values[0]
    selected = wide_inclusion(rho, settings.v0, settings.v1) > 0.5
    notes = {
        "sigma": float(samples["sigma2"].sqrt().mean()),
        "delta": float(samples["delta"].mean()),
        "collapsed": float(any(issubclass(w.category, aeb.CollapseWarning) for w in caught)),
    }
    return summarise(problem, samples["beta"], selected, notes)


def gaussian_regression(problem: Problem, transition: Any, steps: int, seed: int) -> Fit:
    """
    Plain SG-MCMC under the Normal prior, whose target is the exact ridge row.

    :param Problem problem: the data set.
    :param transition: the sampler.
    :param int steps: length of the chain, warm-up included.
    :param int seed: of the chain.
    """
    X, y = tensors(problem)
    kernel = aeb.AEBKernel(
        gaussian_model, transition, adaptation=None, steps_per_draw=STEPS_PER_DRAW, seed=seed
    )
    mcmc = MCMC(kernel, **chain_lengths(steps), disable_progbar=True)
    mcmc.run(X, y, batch_size=min(50, len(y)))
    return summarise(problem, mcmc.get_samples()["beta"], None, {})


def summarise(problem: Problem, beta: Tensor, selected: Any, notes: dict[str, float]) -> Fit:
    """A fit from draws of beta, shape (draws, p); without a rule, intervals decide the support."""
    draws = beta.double().numpy()
    interval = np.quantile(draws, (0.5 - INTERVAL / 2, 0.5 + INTERVAL / 2), axis=0)
    sizes = effective_sample_size(beta[None, :, problem.signals], chain_dim=0, sample_dim=1)
    return Fit(
        coefficients=draws.mean(0),
        selected=excludes_zero(interval) if selected is None else selected,
        interval=interval,
        last=draws[-1],
        notes={**notes, "ess": float(sizes.min())},
    )
