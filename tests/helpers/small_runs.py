# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Short runs of small models, for the tests of diagnostics."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import pyro_aeb as aeb

P = 4
PRECISION = 4.0


def make_data(n: int = 40, p: int = P) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate X of shape (n, p) and y = 2 x_0 + noise of standard deviation 1/2."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, p, generator=generator)
    return x, 2.0 * x[:, 0] + 0.5 * torch.randn(n, generator=generator)


X, Y = make_data()


def regression(X, y=None, batch_size=None, a=2.0):
    """Sparse regression with a learned delta and a fixed sigma."""
    delta = pyro.sample("delta", dist.Beta(a, 3.0))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=0.5))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(X[i] @ beta, 0.5), obs=None if y is None else y[i])


def gaussian(size=1):
    """Weights with a normal prior of precision 4, and no data."""
    pyro.sample("w", dist.Normal(1.0, PRECISION**-0.5).expand([size]).to_event(1))


def loader_regression(x, y=None):
    """Sparse regression on the batches of a DataLoader."""
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    with pyro.plate("features", P):
        beta = pyro.sample("beta", aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=0.5))
    with pyro.plate("data", len(X), subsample=x):
        return pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


SETTLING = aeb.StochasticApproximation(0.1)


def make_kernel(model=regression, transition=None, **options) -> aeb.AEBKernel:
    options = {"adaptation": SETTLING, "seed": 3, "steps_per_draw": 5, **options}
    return aeb.AEBKernel(model, transition or aeb.SGHMC(1e-4), **options)


def run_mcmc(
    kernel=None, draws=200, warmup=50, chains=2, args=(X, Y), kwargs=None, **options
) -> aeb.MCMC:
    options = {"chain_method": "vectorized", "disable_progbar": True, **options}
    mcmc = aeb.MCMC(kernel or make_kernel(), draws, warmup, num_chains=chains, **options)
    mcmc.run(*args, **(kwargs or {}))
    return mcmc
