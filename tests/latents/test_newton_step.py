# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Newton steps end at the mode: of the joint density on a grid where nothing else is unknown, of the
marginal density where the weights are sampled.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_aeb as aeb
from pyro_aeb.latents import NewtonStep
from pyro_aeb.latents.contract import Seen
from pyro_aeb.model.learned_sites import differentiate
from pyro_aeb.model.structure import LearnedSite
from pyro_aeb.testing import check_m_step

GENERATOR = torch.Generator().manual_seed(0)
NOISE = 0.7 * torch.randn(40, generator=GENERATOR)
X = torch.randn(40, 2, generator=GENERATOR)
Y = X @ torch.tensor([1.0, -1.0]) + NOISE
PRIORS = {
    "HalfCauchy": dist.HalfCauchy(torch.tensor(1.0)),
    "HalfNormal": dist.HalfNormal(torch.tensor(0.3)),
    "Exponential": dist.Exponential(torch.tensor(20.0)),
    "Gamma": dist.Gamma(torch.tensor(3.0), torch.tensor(10.0)),
}
LIKELIHOODS = {
    "Normal": lambda scale: dist.Normal(0.0, scale),
    "StudentT": lambda scale: dist.StudentT(3.0, 0.0, scale),
}
GRID = torch.linspace(0.05, 3.0, 59001, dtype=torch.float64)


def known_mean(prior, likelihood):
    def model(y):
        scale = pyro.sample("scale", prior)
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", likelihood(scale), obs=y)

    return model


def learn(model, *args, omega=1.0, draws=1, warmup=30, site="scale", chains=1, **options):
    adaptation = aeb.StochasticApproximation(omega, latents={site: NewtonStep()})
    kernel = aeb.AEBKernel(model, aeb.SGLD(options.pop("step", 1e-3)), adaptation, seed=0)
    method = "vectorized" if chains > 1 else "sequential"
    mcmc = aeb.MCMC(
        kernel, draws, warmup, num_chains=chains, chain_method=method, disable_progbar=True
    )
    mcmc.run(*args, **options)
    return mcmc.get_samples()[site]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", PRIORS)
def test_the_mode_is_that_of_a_grid(prior, likelihood):
    fn, density = PRIORS[prior], LIKELIHOODS[likelihood]
    found = learn(known_mean(fn, density), NOISE)[-1]
    total = density(GRID).log_prob(NOISE.double()[:, None]).sum(0) + fn.log_prob(GRID)
    torch.testing.assert_close(found.double(), GRID[total.argmax()], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("start", [1e-3, 1e3])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_m_step_is_a_maximum_for_autograd(prior, start):
    data = NOISE.double()
    fn = type(PRIORS[prior])(
        *[getattr(PRIORS[prior], n).double() for n in PRIORS[prior].arg_constraints]
    )

    def q(values):
        return dist.StudentT(3.0, 0.0, values["scale"]).log_prob(data).sum() + fn.log_prob(
            values["scale"]
        )

    update = NewtonStep().of(fn)
    site = LearnedSite("scale", torch.Size(), update.transform, update)
    value = torch.tensor(start, dtype=torch.float64)
    for _ in range(60):
        leaf = value.clone().requires_grad_()
        seen = Seen(value, {}, {}, *differentiate(q({"scale": leaf}), leaf, site))
        value = update.maximiser(update.statistics(seen))
    check_m_step(q, {"scale": value})


def test_a_scale_for_each_output_in_a_plate():
    y = torch.stack([NOISE, 3.0 * NOISE, 0.2 * NOISE.flip(0)], -1)

    def model(y):
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("outputs", 3, dim=-1):
            scale = pyro.sample("scale", dist.HalfCauchy(1.0))
            with pyro.plate("data", len(y), dim=-2):
                pyro.sample("y", dist.StudentT(3.0, 0.0, scale), obs=y)

    found = learn(model, y, warmup=40)[-1]
    grid = GRID[:, None, None]
    total = (
        dist.StudentT(3.0, 0.0, grid).log_prob(y.double()).sum(1)
        + dist.HalfCauchy(1.0).log_prob(GRID)[:, None]
    )
    torch.testing.assert_close(found.double(), GRID[total.argmax(0)], atol=2e-4, rtol=0.0)


def test_a_coefficient_and_a_share():
    """Sites that are no scales: on the whole line and on an interval."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    expected = (Y.sum() / 0.25) / (len(Y) / 0.25 + 0.25)
    torch.testing.assert_close(learn(model, Y, site="mean")[-1], expected, atol=1e-5, rtol=1e-4)

    def shares(y):
        share = pyro.sample("share", dist.Uniform(0.0, 0.9))
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(share), obs=y)

    ones = (NOISE > -0.3).float()
    found = learn(shares, ones, site="share")[-1]
    torch.testing.assert_close(found, ones.mean(), atol=1e-4, rtol=1e-3)


def regression(x, y, batch_size=None):
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(x[i] @ b, scale), obs=y[i])


@pytest.mark.parametrize("batch_size, chains", [(None, 1), (10, 2)])
def test_with_sampled_weights_it_is_the_mode_of_the_marginal(batch_size, chains):
    omega = aeb.Polynomial(2.0, 20.0, 0.7)
    found = learn(
        regression,
        X,
        Y,
        omega=omega,
        draws=500,
        warmup=600,
        step=5e-4,
        chains=chains,
        batch_size=batch_size,
    )
    grid = torch.linspace(0.4, 1.2, 801, dtype=torch.float64)
    cov = 9.0 * X.double() @ X.double().T + grid[:, None, None] ** 2 * torch.eye(40).double()
    marginal = dist.MultivariateNormal(torch.zeros(40).double(), cov).log_prob(Y.double())
    mode = float(grid[(marginal + dist.HalfCauchy(1.0).log_prob(grid)).argmax()])
    assert abs(float(found[-300:].mean()) - mode) < 0.03


def test_numbers_that_are_bound_to_each_other_are_refused():
    def model(y):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Categorical(share), obs=y)

    with pytest.raises(aeb.ModelError, match="Dirichlet, whose numbers are bound.*GradientStep"):
        learn(model, (NOISE > 0).long(), site="share")


def test_scales_of_outputs_beside_sparse_weights():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    y = x @ torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]) + torch.tensor([0.2, 0.5, 1.0]) * noise

    def model(x, y):
        scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
        prior = aeb.SSGL(v0=0.1, v1=10.0, delta=0.5, sigma=1.0).expand([2, 3]).to_event(2)
        beta = pyro.sample("beta", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(50.0, x @ beta, scale).to_event(1), obs=y)

    found = learn(model, x, y, omega=0.2, draws=100, warmup=300, step=1e-4)[-50:].mean(0)
    torch.testing.assert_close(found, torch.tensor([0.2, 0.5, 1.0]), rtol=0.15, atol=0.0)


@pytest.mark.parametrize(
    "prior, cure",
    [
        (dist.LogNormal(0.0, 1.0), r"'sigma' ~ LogNormal, .*latents.NewtonStep\(\)"),
        (dist.HalfCauchy(1.0), "'sigma', .*learned by equations .4. to .7. already; leave it out"),
    ],
    ids=["LogNormal", "HalfCauchy"],
)
def test_a_sigma_of_sparse_weights_is_refused_with_the_cure(prior, cure):
    def model(x, y):
        sigma = pyro.sample("sigma", prior)
        beta = pyro.sample(
            "beta", aeb.SSGL(0.1, 10.0, delta=0.5, sigma=sigma).expand([2]).to_event(1)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    with pytest.raises(aeb.ModelError, match=cure):
        learn(model, X, Y, site="sigma")
