# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A StudentT likelihood whose scale is a multiple of a learned sigma: the gradient, the residuals of
(6), and where sigma ends, by Pyro's densities on grids.
"""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_aeb as aeb
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.likelihood import Likelihood
from pyro_aeb.testing import check_adaptation, check_model

N, P, DF = 60, 3, 3.0
GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(N, P, generator=GENERATOR)
NOISE = torch.randn(N, generator=GENERATOR) / torch.rand(N, generator=GENERATOR).sqrt()
Y = X @ torch.tensor([1.5, -1.0, 0.0]) + 0.4 * NOISE
GRID = torch.linspace(-5.0, 3.0, 80_001, dtype=torch.float64).exp()


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def sample_sigma(prior):
    if prior == "InverseGamma":
        return pyro.sample("sigma2", dist.InverseGamma(2.0, 0.3)).sqrt()
    return pyro.sample("sigma", dist.HalfCauchy(0.2))


def sigma_density(prior, sigma):
    if prior == "InverseGamma":
        return dist.InverseGamma(2.0, 0.3).log_prob(sigma.square())
    return dist.HalfCauchy(0.2).log_prob(sigma)


PRIORS = ["InverseGamma", "HalfCauchy"]


def robust(x, y, prior="InverseGamma", delta=0.4, batch_size=None, c=1.0, df=DF):
    sigma = sample_sigma(prior)
    beta = pyro.sample("beta", aeb.SSGL(0.1, 4.0, delta, sigma).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        pyro.sample("y", dist.StudentT(df, x[i] @ beta, c * sigma), obs=y[i])


def with_unknown_tails(x, y, batch_size=None):
    """Degrees of freedom and a scale that depend on sampled weights."""
    df = pyro.sample("df", dist.Gamma(2.0, 0.1))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sigma = sample_sigma("InverseGamma")
    beta = pyro.sample("beta", aeb.SSGL(0.1, 4.0, 0.4, sigma).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        scale = sigma * torch.exp(slope * x[i, 0])
        pyro.sample("y", dist.StudentT(df, x[i] @ beta, scale), obs=y[i])


def of_vectors(x, y, batch_size=None):
    sigma = sample_sigma("HalfCauchy")
    w = pyro.sample("w", aeb.SSGL(0.1, 4.0, 0.4, sigma).expand([x.shape[1], 2]).to_event(2))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        both = torch.stack([y, 2.0 * y], -1)[i]
        pyro.sample("y", dist.StudentT(DF, x[i] @ w, 2.0 * sigma).to_event(1), obs=both)


@pytest.mark.parametrize(
    "model", [robust, with_unknown_tails, of_vectors], ids=lambda m: m.__name__
)
def test_the_gradient_is_that_of_pyros_densities(model):
    check_model(model, X[:6].double(), Y[:6].double(), batch_size=2)


def test_the_check_of_adaptation_says_what_it_leaves_out():
    report = check_adaptation(robust, X[:6].double(), Y[:6].double())
    assert "not sigma2, an EM step by its StudentT likelihood" in str(report)


@pytest.mark.parametrize("c", [1.0, 2.5])
@pytest.mark.parametrize("way", ["all", "masked", "weighted", "batch"])
def test_the_residuals_are_weighted_by_the_e_step(way, c):
    x, y = X.double(), Y.double()
    mask, weights = y > 0.0, 0.5 + torch.arange(N) / N
    handlers = {"masked": poutine.mask(mask=mask), "weighted": poutine.scale(scale=weights)}

    def model(x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 0.3))
        beta = pyro.sample("beta", aeb.SSGL(0.1, 4.0, 0.4, sigma2.sqrt()).expand([P]).to_event(1))
        size = 20 if way == "batch" else None
        with pyro.plate("data", N, subsample_size=size) as i, handlers.get(way, nullcontext()):
            pyro.sample("y", dist.StudentT(DF, x[i] @ beta, c * sigma2.sqrt()), obs=y[i])

    structure = inspect_model(model, (x, y), {}, adapt=True)
    beta, sigma2 = torch.tensor([1.0, 0.2, -0.3]), torch.tensor(0.7)
    i = torch.arange(20) if way == "batch" else torch.arange(N)
    batch = Batch(Arguments((x, y), {}), {"data": i})
    found = Likelihood(model, structure).evaluate(beta, {"sigma2": sigma2}, batch)
    r = (y - x @ beta)[i] / c
    count = {"masked": mask.double(), "weighted": weights}.get(way, torch.ones(N))[i]
    square = (count * (DF + 1.0) / (DF + r.square() / sigma2) * r.square()).sum() * (N / len(i))
    residuals = found.statistics.residuals["y"]
    torch.testing.assert_close(residuals.square, square)
    assert float(residuals.data) == pytest.approx(float(count.sum() * N / len(i)))


def run(model, *args, omega, step, draws=1, warmup=100, chains=1, **options):
    kernel = aeb.AEBKernel(model, aeb.SGLD(step), aeb.StochasticApproximation(omega), seed=0)
    method = "vectorized" if chains > 1 else "sequential"
    mcmc = aeb.MCMC(
        kernel, draws, warmup, num_chains=chains, chain_method=method, disable_progbar=True
    )
    mcmc.run(*args, **options)
    return mcmc


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("c", [1.0, 3.0])
def test_a_run_ends_at_the_mode_given_its_state(prior, c):
    x, y = X.double(), Y.double()
    mcmc = run(robust, x, y, omega=1.0, step=1e-14, prior=prior, c=c)
    chain = mcmc.kernel.chain
    beta, slab = chain.state.position, chain.ssgl.slab
    total = dist.StudentT(DF, 0.0, c * GRID[:, None]).log_prob(y - x @ beta).sum(-1)
    total = total - P * GRID.log() - ((1.0 - slab) / 0.1 * beta.abs()).sum() / GRID
    total = total - (slab / 8.0 * beta.square()).sum() / GRID.square() + sigma_density(prior, GRID)
    torch.testing.assert_close(chain.ssgl.sigma[0], GRID[total.argmax()], rtol=2e-4, atol=0.0)


@pytest.mark.parametrize("prior", PRIORS)
def test_with_a_sampled_weight_it_is_the_mode_of_the_marginal(prior):
    """With delta = 1 the weight is N(0, 4 sigma^2); it is integrated out on a grid."""
    x, y = X[:, :1].double(), (1.5 * X[:, 0] + 0.4 * NOISE).double()
    omega = aeb.Polynomial(2.0, 20.0, 0.7)
    options = {"omega": omega, "step": 4e-4, "draws": 300, "warmup": 300, "chains": 2}
    mcmc = run(robust, x, y, prior=prior, delta=1.0, **options)
    sigma = torch.linspace(0.15, 1.5, 271)[:, None]
    beta = torch.linspace(0.5, 2.5, 401)
    joint = dist.Normal(0.0, 2.0 * sigma).log_prob(beta) + sigma_density(prior, sigma)
    for x_i, y_i in zip(x[:, 0], y, strict=True):
        joint = joint + dist.StudentT(DF, x_i * beta, sigma).log_prob(y_i)
    mode = float(sigma[joint.logsumexp(-1).argmax()])
    name = "sigma2" if prior == "InverseGamma" else "sigma"
    found = mcmc.get_samples(group_by_chain=True)[name][:, -200:].mean()
    found = float(found.sqrt() if prior == "InverseGamma" else found)
    assert abs(found - mode) < 0.02
    normal = float((y - x[:, 0] * 1.5).std())
    assert abs(normal - mode) > 0.1  # a Normal likelihood would end elsewhere
