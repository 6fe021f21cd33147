# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Equation (6) under HalfCauchy, HalfNormal, Exponential and Gamma priors of sigma: the mode of a grid
of Pyro's densities; in a run, with weights that stand still, the mode given the chain's state; and
with sampled weights the mode of the marginal density.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_aeb as aeb
from pyro_aeb import priors
from pyro_aeb.adaptation import scale_mode
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.priors.scales import ScaleTerms, scale_terms
from pyro_aeb.testing import check_adaptation

N, P = 60, 4
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(N, P, generator=GENERATOR)
NOISE = 0.6 * torch.randn(N, generator=GENERATOR)
Y = X @ torch.tensor([1.5, -1.0, 0.0, 0.0]) + NOISE
GRID = torch.linspace(-12.0, 12.0, 240_001, dtype=torch.float64).exp()


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


PRIORS = {
    "HalfCauchy": lambda: dist.HalfCauchy(*double(0.3)),
    "HalfNormal": lambda: dist.HalfNormal(*double(0.2)),
    "Exponential": lambda: dist.Exponential(*double(25.0)),
    "Gamma": lambda: dist.Gamma(*double(5.0, 40.0)),
    "Gamma without a mode": lambda: dist.Gamma(*double(0.4, 2.0)),
    "Gamma that outweighs the data": lambda: dist.Gamma(*double(500.0, 90.0)),
}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


def terms_of(prior):
    (terms,) = scale_terms(prior, torch.Size())
    return terms


def q(sigma, absolute, square, count, prior):
    """Q as a function of sigma; ``absolute`` is B, ``square`` is C and ``count`` p, or N + p."""
    return (
        -count * sigma.log()
        - absolute / sigma
        - square / (2.0 * sigma.square())
        + prior.log_prob(sigma)
    )


def grid_mode(absolute, square, count, prior):
    return GRID[q(GRID, absolute, square, count, prior).argmax()]


STATISTICS = [(3.0, 2.0, 50.0), (0.0, 7.0, 20.0), (400.0, 90.0, 1000.0), (0.02, 1e-5, 3.0)]


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("statistics", STATISTICS, ids=str)
def test_the_mode_is_that_of_a_grid(prior, statistics, start):
    absolute, square, count = statistics
    found = scale_mode(*double(absolute, square), count, terms_of(prior), *double(start))
    torch.testing.assert_close(found, grid_mode(*statistics, prior), rtol=1e-4, atol=0.0)
    leaf = found.clone().requires_grad_()
    (slope,) = torch.autograd.grad(q(leaf, *statistics, prior), leaf)
    assert abs(float(slope * found)) < 1e-8 * (count + absolute / found + square / found**2)


def test_several_priors_at_once_in_single_precision():
    fns = [PRIORS[name]() for name in ("HalfCauchy", "HalfNormal", "Gamma")]
    terms = ScaleTerms(
        torch.tensor([0.0, 0.0, 4.0]),
        torch.tensor([0.0, 0.0, 40.0]),
        torch.tensor([0.0, 25.0, 0.0]),
        torch.tensor([0.09, math.inf, math.inf]),
    )
    found = scale_mode(torch.tensor(3.0), torch.tensor(2.0), 50.0, terms, torch.ones(3))
    expected = torch.stack([grid_mode(3.0, 2.0, 50.0, fn) for fn in fns])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_where_all_weights_are_zero(prior, dtype):
    zero = torch.zeros((), dtype=dtype)
    found = scale_mode(zero, zero, 10.0, terms_of(prior), zero + 1.0)
    assert found.isfinite() and found > 0.0


def regression(x, y=None, batch_size=None, prior=None, delta=None, noise=None):
    sigma = pyro.sample("sigma", prior)
    delta = pyro.sample("delta", dist.Beta(2.0, 3.0)) if delta is None else delta
    beta = pyro.sample("beta", aeb.SSGL(0.1, 4.0, delta, sigma).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        scale = sigma if noise is None else noise
        pyro.sample("y", dist.Normal(x[i] @ beta, scale), obs=None if y is None else y[i])


def lasso_of_matrices(x, y, prior=None):
    sigma = pyro.sample("sigma", prior)
    prior = priors.SpikeAndSlabLasso(0.1, 3.0, 0.4, sigma).expand([x.shape[1], 2]).to_event(2)
    w = pyro.sample("w", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 2.0 * sigma).to_event(1), obs=y[:, None].expand(-1, 2))


def several(x, y, prior=None):
    """A sigma of another prior for each of two sites, beside one of an InverseGamma."""
    sigma = pyro.sample("sigma", prior)
    other = pyro.sample("other", dist.HalfCauchy(1.0))
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 0.5))
    parts = [
        pyro.sample(f"beta{i}", aeb.SSGL(0.1, 4.0, 0.4, scale).expand([n]).to_event(1))
        for i, (scale, n) in enumerate([(sigma, 2), (sigma2.sqrt(), 1), (other, 1)])
    ]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ torch.cat(parts), sigma2.sqrt()), obs=y)


@pytest.mark.parametrize(
    "model", [regression, lasso_of_matrices, several], ids=lambda m: m.__name__
)
def test_every_update_is_a_maximum_of_q_for_autograd(model, prior):
    torch.set_default_dtype(torch.float64)
    options = {"batch_size": 15} if model is regression else {}
    check_adaptation(model, X.double(), Y.double(), prior=prior, **options)


def run(model, *args, omega, step, draws=1, warmup=80, seed=0, chains=1, **options):
    kernel = aeb.AEBKernel(
        model, aeb.SGLD(step), aeb.StochasticApproximation(omega, **options), seed=seed
    )
    method = "vectorized" if chains > 1 else "sequential"
    mcmc = aeb.MCMC(
        kernel, draws, warmup, num_chains=chains, chain_method=method, disable_progbar=True
    )
    mcmc.run(*args)
    return mcmc


@pytest.mark.parametrize("noise", [None, 0.6], ids=["of the likelihood too", "of the prior alone"])
def test_a_run_ends_at_the_mode_given_its_state(prior, noise):
    def model(x, y):
        regression(x, y, prior=prior, noise=noise)

    torch.set_default_dtype(torch.float64)
    mcmc = run(model, X.double(), Y.double(), omega=1.0, step=1e-14)
    chain = mcmc.kernel.chain
    beta, slab = chain.state.position, chain.ssgl.slab
    absolute = ((1.0 - slab) / 0.1 * beta.abs()).sum()
    square, count = (slab / 4.0 * beta.square()).sum(), P
    if noise is None:
        square, count = square + (Y - X.double() @ beta).square().sum(), P + N
    expected = grid_mode(absolute, square, count, prior)
    found = mcmc.get_samples()["sigma"][-1]
    assert found == chain.ssgl.sigma[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    "prior",
    [dist.HalfCauchy(0.2), dist.HalfNormal(0.15), dist.Exponential(30.0), dist.Gamma(9.0, 30.0)],
    ids=lambda prior: type(prior).__name__,
)
def test_with_sampled_weights_it_is_the_mode_of_the_marginal(prior):
    """With delta = 1 the weights are N(0, 4 sigma^2), and y is N(0, sigma^2 (I + 4 X X'))."""

    def model(x, y):
        regression(x, y, prior=prior, delta=1.0)

    omega = aeb.Polynomial(2.0, 20.0, 0.7)
    mcmc = run(model, X, Y, omega=omega, step=5e-4, draws=300, warmup=300, chains=2)
    grid = torch.linspace(0.2, 1.0, 801, dtype=torch.float64)
    covariance = torch.eye(N).double() + 4.0 * X.double() @ X.double().T
    zero = torch.zeros(N).double()
    scaled = grid[:, None, None].square() * covariance
    marginal = dist.MultivariateNormal(zero, scaled).log_prob(Y.double())
    mode = float(grid[(marginal + prior.log_prob(grid)).argmax()])
    flat = float(grid[marginal.argmax()])
    found = float(mcmc.get_samples(group_by_chain=True)["sigma"][:, -200:].mean())
    assert abs(found - mode) < 0.015
    assert abs(mode - flat) > 0.02 or isinstance(prior, dist.HalfCauchy)


def test_the_sites_are_those_of_sigma_itself():
    found = inspect_model(regression, (X, Y), {"prior": dist.HalfCauchy(0.3)}, adapt=True)
    (sigma,) = found.sigmas
    assert sigma.site == "sigma" and sigma.likelihoods == {"y"}
    assert sigma.terms == ScaleTerms(cauchy=pytest.approx(0.09))
    assert found.latent_sites == ("sigma", "delta") and [b.name for b in found.blocks] == ["beta"]
