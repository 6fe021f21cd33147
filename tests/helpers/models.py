# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Small models and data for several tests, at the top level of a module, so that spawned processes can
import them.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_aeb import SSGL

N, P = 20, 3


def linear_data(n: int = N, p: int = P, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Generate X of shape (n, p) and y = 2 x_0 + noise of standard deviation 1/2."""
    generator = torch.Generator().manual_seed(20)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return x.to(dtype), (2.0 * x[:, 0] + 0.5 * noise).to(dtype)


def sparse_prior(p: int = P) -> tuple[Tensor, Tensor, Tensor]:
    """Sample sigma2, delta and p weights with an SSGL prior that depends on both."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    return sigma2, delta, beta


def sparse_regression(X, y=None, batch_size=None):
    sigma2, _, beta = sparse_prior(X.shape[1])
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        mean = X[i] @ beta
        return pyro.sample("y", dist.Normal(mean, sigma2.sqrt()), obs=None if y is None else y[i])


def loader_regression(x, y=None, size=N):
    """Sparse regression on the batches of a DataLoader of ``size`` data."""
    sigma2, _, beta = sparse_prior(x.shape[1])
    with pyro.plate("data", size, subsample=x):
        return pyro.sample("y", dist.Normal(x @ beta, sigma2.sqrt()), obs=y)


def outputs_regression(X, y=None, batch_size=None):
    """Three outputs, with a sigma and a delta for each in one plate."""
    with pyro.plate("outputs", 3):
        sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
        delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
    prior = SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma).expand([X.shape[1], 3])
    beta = pyro.sample("beta", prior.to_event(2))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        obs = None if y is None else torch.stack([y, 2.0 * y, y - 1.0], -1)[i]
        return pyro.sample("y", dist.Normal(X[i] @ beta, sigma).to_event(1), obs=obs)


def double_regression(X, y=None):
    """Sparse regression in X's dtype, whatever torch's default."""
    one = torch.ones((), dtype=X.dtype)
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5 * one, 2.0 * one))
    delta = pyro.sample("delta", dist.Beta(2.0 * one, 3.0 * one))
    with pyro.plate("features", X.shape[1]):
        beta = pyro.sample("beta", SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", len(X)):
        return pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)


def sparse_classification(X, y=None, batch_size=None):
    _, _, beta = sparse_prior(X.shape[1])
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        labels = None if y is None else (y[i] > 0).to(X.dtype)
        return pyro.sample("y", dist.Bernoulli(logits=X[i] @ beta), obs=labels)


def sparse_layers(X, y=None, widths=(4, 1)):
    """SSGL layers with a delta each, and one sigma for all and for the noise."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    h = X
    for layer, width in enumerate(widths):
        delta = pyro.sample(f"delta{layer}", dist.Beta(2.0 + layer, 3.0))
        prior = SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt())
        weight = pyro.sample(f"w{layer}", prior.expand([h.shape[-1], width]).to_event(2))
        h = torch.tanh(h @ weight)
    with pyro.plate("data", len(X)):
        return pyro.sample("y", dist.Normal(h.squeeze(-1), sigma2.sqrt()), obs=y)


def dense_regression(X, y=None, batch_size=None):
    """A conjugate model: weights ~ N(0, 2^2), noise of standard deviation 1/2."""
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([X.shape[1]]).to_event(1))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(X[i] @ w, 0.5), obs=None if y is None else y[i])


SCHOOLS_Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOLS_SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma, y=None):
    """As in Pyro's examples."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("schools", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def scale_and_simplex(y):
    """A positive and a simplex site: a mixture of two known means with an unknown scale."""
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    components = dist.Normal(torch.tensor([-1.0, 2.0]), scale)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)


class DenseNetwork(PyroModule):
    """A small network as in Pyro's tutorials, with batch normalisation."""

    def __init__(self, inputs: int = P, width: int = 4) -> None:
        super().__init__()
        self.first = PyroModule[nn.Linear](inputs, width)
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([width, inputs]).to_event(2))
        self.first.bias = PyroSample(dist.Normal(0.0, 2.0).expand([width]).to_event(1))
        self.norm = PyroModule[nn.BatchNorm1d](width, affine=False)
        self.last = PyroModule[nn.Linear](width, 1, bias=False)
        self.last.weight = PyroSample(dist.Normal(0.5, 1.0).expand([1, width]).to_event(2))

    def forward(self, X, y=None):
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        mean = self.last(torch.tanh(self.norm(self.first(X)))).squeeze(-1)
        with pyro.plate("data", len(X)):
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)


def _weight_prior(network: SparseNetwork) -> dist.Distribution:
    prior = SSGL(v0=0.1, v1=10.0, delta=network.delta, sigma=network.sigma2.sqrt())
    return prior.expand([network.inputs]).to_event(1)


class SparseNetwork(PyroModule):
    """Sparse regression whose sites are all attributes of a module."""

    def __init__(self, inputs: int = P) -> None:
        super().__init__()
        self.inputs = inputs
        self.sigma2 = PyroSample(dist.InverseGamma(1.5, 2.0))
        self.delta = PyroSample(dist.Beta(2.0, 3.0))
        self.beta = PyroSample(_weight_prior)

    def forward(self, X, y=None):
        mean = X @ self.beta
        with pyro.plate("data", len(X)):
            return pyro.sample("y", dist.Normal(mean, self.sigma2.sqrt()), obs=y)
