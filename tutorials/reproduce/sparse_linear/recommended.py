# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
SGHMC-SA for large p and small n, as we recommend it: choose cold, then sample.

What differs from the paper's SGLD-SA, each for a reason that needs no test data:

* sigma is fixed, at an estimate from the training rows (:func:`residual_scale`). Where p is much
  larger than n, equation (6) leans on the spikes: at inverse temperature tau its fixed point is
  sigma^2 = I / (n + p (1 - 1 / tau)), which collapses as soon as tau is above 1.
* The spikes are narrow. All p together must not be able to explain the noise: their predictive
  variance over the tempered noise's, 2 p (sigma v0 / tau)^2 / (sigma^2 / tau), is 2 p v0^2 / tau:
  20 with the paper's v0 = 0.1 at tau = 1. A tenth at most gives v0 <= 0.022 at tau = 10 and
  v0 <= 0.007 at tau = 1.
* The first run is cold, tau = 10, a search for the latents: at tau = 1 the noise of a spike weight
  feeds its own inclusion probability, and the third effect is lost. The second run starts where
  the first ended and samples at tau = 1, so that intervals have the width of a posterior.
* SGHMC in place of SGLD and all rows at every step, for fewer steps. The step size of the first run
  is a search's, far above (sigma v0)^2 / tau: it does not sample its target, and its spikes are
  wider than it. That of the second is below (sigma v0)^2, though not far below.

The rest is the paper's: v1 = 10, delta ~ Beta(1, p), the schedule omega, the first values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value
from sklearn.linear_model import Lasso
from torch import Tensor

import pyro_aeb as aeb

V1 = 10.0
STEPS_PER_DRAW = 10
OMEGA = aeb.Polynomial(scale=10.0, offset=1000.0, power=0.7)


@dataclass(frozen=True)
class Run:
    """
    One of the two runs.

    :param float v0: scale of the spikes, in units of sigma.
    :param float tau: inverse temperature.
    :param float step_size: of SGHMC.
    :param int steps: in all.
    :param int warmup: of these, discarded.
    """

    v0: float
    tau: float
    step_size: float
    steps: int
    warmup: int

    def draws(self, share: float) -> dict[str, int]:
        """MCMC's arguments for a share of the steps."""
        count = [max(round(share * n) // STEPS_PER_DRAW, 2) for n in (self.steps, self.warmup)]
        return {"num_samples": max(count[0] - count[1], 2), "warmup_steps": count[1]}


CHOOSE = Run(v0=0.02, tau=10.0, step_size=3e-4, steps=5_000, warmup=1_500)
SAMPLE = Run(v0=0.005, tau=1.0, step_size=3e-5, steps=30_000, warmup=3_000)
STEPS = CHOOSE.steps + SAMPLE.steps


class Result(NamedTuple):
    """
    :param MCMC choose: the cold run.
    :param MCMC sample: the run to report.
    :param float sigma: the noise scale that both hold fixed.
    """

    choose: MCMC
    sample: MCMC
    sigma: float


def residual_scale(X: Tensor, y: Tensor) -> float:
    """
    The noise's standard deviation, from the training rows alone: least squares on the features that
    the scaled lasso [1] keeps. It has nothing to tune; its penalty is the universal sigma sqrt(2
    log(p) / n), with sigma and the lasso solved in turn.

    :param X: centred features of unit variance, shape (n, p).
    :param y: centred responses, shape (n,).

    [1] Tingni Sun, Cun-Hui Zhang (2012), "Scaled sparse linear regression", Biometrika 99(4);
        section 2.2 for the least squares.
    """
    features, target = X.double().numpy(), y.double().numpy()
    n, p = features.shape
    sigma, kept = float(np.std(target)), np.arange(0)
    for _ in range(50):
        lasso = Lasso(alpha=sigma * np.sqrt(2.0 * np.log(p) / n), fit_intercept=False)
        residual = target - lasso.fit(features, target).predict(features)
        last, sigma = sigma, float(np.sqrt(np.mean(residual**2)))
        kept = np.flatnonzero(lasso.coef_)
        if abs(sigma - last) < 1e-4 * last:
            break
    if not 0 < len(kept) < n:
        return sigma
    coefficients = np.linalg.lstsq(features[:, kept], target, rcond=None)[0]
    residual = target - features[:, kept] @ coefficients
    return float(np.sqrt(np.sum(residual**2) / (n - len(kept))))


def model(X: Tensor, y: Tensor | None, v0: float, sigma: float) -> Tensor:
    """
    Sparse linear regression with a known noise scale.

    :param X: features of unit variance, shape (n, p).
    :param y: responses, shape (n,); None to predict them.
    :param float v0: scale of the spikes, in units of sigma.
    :param float sigma: standard deviation of the noise.
    """
    n, p = X.shape
    delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(v0=v0, v1=V1, delta=delta, sigma=sigma))
    with pyro.plate("data", n):
        return pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def choose_then_sample(
    X: Tensor, y: Tensor, seed: int, share: float = 1.0, progress: bool = False
) -> Result:
    """
    Both runs.

    :param X: features, shape (n, p).
    :param y: responses, shape (n,).
    :param int seed: of the chains.
    :param float share: of the recommended number of steps.
    :param bool progress: whether to show Pyro's progress bar.
    """
    sigma = residual_scale(X, y)

    def run(settings: Run, first: dict[str, Tensor], **latents: object) -> MCMC:
        kernel = aeb.AEBKernel(
            model,
            aeb.SGHMC(settings.step_size, friction=0.1),
            adaptation=aeb.StochasticApproximation(OMEGA, **latents),
            inverse_temperature=settings.tau,
            steps_per_draw=STEPS_PER_DRAW,
            init_strategy=init_to_value(values=first),
            seed=seed,
        )
        mcmc = MCMC(kernel, **settings.draws(share), disable_progbar=not progress)
        mcmc.run(X, y, v0=settings.v0, sigma=sigma)
        return mcmc

    generator = torch.Generator().manual_seed(seed)
    start = {
        "beta": 0.1 * torch.randn(X.shape[1], generator=generator),
        "delta": torch.tensor(0.5),
    }
    choose = run(CHOOSE, start, initial_penalty=1.0)
    end = {name: draws[-1] for name, draws in choose.get_samples().items()}
    sample = run(SAMPLE, end, initial_inclusion={"beta": choose.kernel.latents.rho})
    return Result(choose, sample, sigma)
