# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Spikes and slabs with a learned width, by Gibbs with its flips.

The model of a number is linear, that of two classes logistic, and that of more classes multinomial,
with a weight for each gene and class and an intercept for each class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sparse_linear.data import Array

import pyro_aeb as aeb

CHAINS, STEPS_PER_DRAW = 4, 10
STARTS = (0.002, 0.008, 0.03, 0.1)
"""First values of v0, of the chains."""


class Sampled(NamedTuple):
    """
    Pooled draws of four chains.

    :param draws: of all sites by name, the draw in front.
    :param gamma: shape (chains, draws, p, classes); one class where the model has no more.
    :param inclusion: of every weight and chain, shape (chains, weights).
    """

    draws: dict[str, Array]
    gamma: Array
    inclusion: Array


def weights(x: torch.Tensor, sigma: torch.Tensor | float, *classes: int) -> torch.Tensor:
    """Sample the weights; sites without an ``init_value`` start where Gibbs starts them."""
    p = x.shape[1]
    delta = pyro.sample("delta", dist.Beta(4.0, float(p)))
    v0 = aeb.priors.spike_width("v0", p)
    prior = aeb.SSGL(v0, 1.0, delta, sigma).expand([p, *classes])
    return pyro.sample("beta", prior.to_event(1 + len(classes)))


def linear(x: torch.Tensor, y: torch.Tensor) -> None:
    """The model of a number."""
    sigma = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5)).sqrt()
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    mean = intercept + x @ weights(x, sigma)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
    """The model of two classes."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    logits = intercept + x @ weights(x, 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def multinomial(x: torch.Tensor, y: torch.Tensor) -> None:
    """The model of more classes, of which every one has rows."""
    classes = int(y.max()) + 1
    prior = dist.Normal(0.0, 2.0).expand([classes]).to_event(1)
    logits = pyro.sample("intercept", prior) + x @ weights(x, 1.0, classes)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def sample(x: Array, y: Array, classes: int, draws: int, seed: int) -> Sampled:
    """
    Sample the posterior.

    :param y: numbers of mean 0 and variance 1, or numbers of classes.
    :param int classes: number of classes; 0 where y is a number.
    """
    kernel = aeb.AEBKernel(
        {0: linear, 2: logistic}.get(classes, multinomial),
        aeb.SGHMC(0.01),  # in units of sigma v0
        aeb.Gibbs(every=10),
        seed=seed,
        steps_per_draw=STEPS_PER_DRAW,
    )
    mcmc = aeb.MCMC(
        kernel, draws, draws, num_chains=CHAINS, chain_method="vectorized", disable_progbar=True,
        initial_params={"v0": torch.tensor(STARTS).log()},
    )  # fmt: skip
    target = torch.from_numpy(y).long() if classes > 2 else torch.from_numpy(y).float()
    mcmc.run(torch.from_numpy(x).float(), target)
    own = {name: values.double().numpy() for name, values in mcmc.get_samples().items()}
    records = list(mcmc.diagnostics()["adaptation"].values())
    key = "beta_gamma" if classes else "beta_rho"  # a rejected flip is not in rho
    inclusion = np.stack([np.asarray(chain[key], float).mean(0).ravel() for chain in records])
    gamma = np.stack([np.asarray(chain["beta_gamma"]) for chain in records])
    return Sampled(own, gamma.reshape(*gamma.shape[:2], x.shape[1], -1), inclusion)
