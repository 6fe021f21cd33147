# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Weights of data and classes, ``poutine.scale(scale=w)`` around the likelihood."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import N, P, linear_data
from pyro import poutine
from pyro.infer import MCMC
from refusals import raises_with, run_dense_model, run_model
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.posterior import compiled_code

X, Y = linear_data()
W = torch.linspace(0.1, 3.0, N)
M = 80
DATA = torch.randn(M, generator=torch.Generator().manual_seed(1)) + 1.0
WEIGHTS = 3.0 * torch.rand(M, generator=torch.Generator().manual_seed(2))
EXACT = float((WEIGHTS * DATA).sum() / (WEIGHTS.sum() + 1 / 25))
"""The mean of m ~ Normal(0, 5) given y ~ Normal(m, 1) with weights."""


def weighted_mean(y, w, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", M, subsample_size=size) as i, poutine.scale(scale=w[i]):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y[i])


def weighted_batch(y, w):
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", M, subsample=y), poutine.scale(scale=w):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def run(model, *args, chains=1, draws=300, compile=False, **kwargs):
    kernel = aeb.AEBKernel(model, aeb.SGLD(4e-3), steps_per_draw=5, seed=0, compile=compile)
    options = {"num_chains": chains, "chain_method": "vectorized"} if chains > 1 else {}
    mcmc = aeb.MCMC(kernel, draws, 20, disable_progbar=True, **options)
    mcmc.run(*args, **kwargs)
    return mcmc.get_samples(group_by_chain=True)["m"]


def test_the_mean_is_the_weighted_one():
    draws = run(weighted_mean, DATA, WEIGHTS)
    assert float(draws.mean()) == pytest.approx(EXACT, abs=0.03)
    assert float(draws.var()) == pytest.approx(float(1 / (WEIGHTS.sum() + 1 / 25)), rel=0.4)
    assert abs(EXACT - float(DATA.mean())) > 0.05  # what it would be without weights


def test_weights_in_minibatches():
    assert float(run(weighted_mean, DATA, WEIGHTS, size=16).mean()) == pytest.approx(
        EXACT, abs=0.04
    )


def test_weights_from_a_loader():
    loader = DataLoader(TensorDataset(DATA, WEIGHTS), batch_size=16, shuffle=True)
    assert float(run(weighted_batch, loader).mean()) == pytest.approx(EXACT, abs=0.04)


def test_weights_of_chains_that_step_together():
    """They make the steps of chains one after the other."""
    together = run(weighted_mean, DATA, WEIGHTS, size=16, chains=2, draws=10)
    alone = run(weighted_mean, DATA, WEIGHTS, size=16, draws=10)
    torch.testing.assert_close(together[:1], alone)


MANY = {"num_chains": 100, "chain_method": "vectorized", "disable_progbar": True}


def weighted_normal(y, w):
    """Mean and variance are unknown, and conjugate."""
    s2 = pyro.sample("s2", dist.InverseGamma(2.5, 1.5))
    m = pyro.sample("m", dist.Normal(0.5, (s2 / 0.7).sqrt()))
    with pyro.plate("data", len(y)), poutine.scale(scale=w):
        pyro.sample("y", dist.Normal(m, s2.sqrt()), obs=y)


def normal_inverse_gamma(y, w):
    """The posterior's shape, rate, precision (in units of 1 / s2) and mean, in closed form."""
    precision = 0.7 + w.sum()
    mean = (0.7 * 0.5 + (w * y).sum()) / precision
    square = 0.7 * 0.5**2 + (w * y.square()).sum() - precision * mean.square()
    return 2.5 + 0.5 * w.sum(), 1.5 + 0.5 * square, precision, mean


def test_the_density_with_an_unknown_variance_is_the_weighted_conjugate_one():
    shape, rate, precision, mean = normal_inverse_gamma(DATA, WEIGHTS)
    kernel = aeb.AEBKernel(weighted_normal, aeb.SGLD(1e-3), adaptation=None, seed=0)
    kernel.setup(0, DATA, WEIGHTS)
    chain = kernel.chain
    batch = chain.data.next()
    found, expected = [], []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        m, log_s2 = torch.randn(2, generator=generator)
        s2 = log_s2.exp().requires_grad_()
        m.requires_grad_()
        position = chain.structure.flatten({"m": m.detach(), "s2": s2.detach()})
        evaluation = chain.posterior.evaluate(position, None, batch)
        potential = chain.posterior.potential(evaluation.log_density, position, None)
        density = dist.InverseGamma(shape, rate).log_prob(s2) + s2.log()  # of the log of s2
        density = density + dist.Normal(mean, (s2 / precision).sqrt()).log_prob(m)
        gradient = torch.autograd.grad(density, (m, s2))
        slopes = {"m": gradient[0], "s2": gradient[1] * s2.detach()}
        for name, value in chain.structure.unflatten(evaluation.gradient).items():
            torch.testing.assert_close(value, slopes[name], rtol=1e-4, atol=1e-3)
        found.append(float(-potential))
        expected.append(float(density.detach()))
    constant = found[0] - expected[0]
    assert found == pytest.approx([x + constant for x in expected], rel=1e-5, abs=1e-3)


def test_hmc_with_an_unknown_variance_has_the_weighted_conjugate_posterior():
    """Moments within five standard errors, by the means of 100 chains."""
    y, w = DATA[:12], WEIGHTS[:12]
    shape, rate, precision, mean = normal_inverse_gamma(y, w)
    kernel = aeb.AEBKernel(weighted_normal, aeb.transitions.HMC(0.02, 8), None, seed=0)
    mcmc = aeb.MCMC(kernel, 60, 30, **MANY)
    mcmc.run(y, w)
    draws = mcmc.get_samples(group_by_chain=True)
    mean_s2 = rate / (shape - 1)
    exact = {
        "m": (mean, mean_s2 / precision),
        "s2": (mean_s2, mean_s2.square() / (shape - 2)),
    }
    for name, (first, variance) in exact.items():
        for values, right in (
            (draws[name], first),
            ((draws[name] - first).square(), variance),
        ):
            of_chains = values.mean(1)
            error = float(of_chains.std()) / 10.0
            assert abs(float(of_chains.mean() - right)) < 5.0 * error
            assert error < 0.1 * float(right)


def sparse_weighted(X, y, w, batch_size=None):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
    prior = aeb.SSGL(v0=0.1, v1=10.0, delta=0.3, sigma=sigma2.sqrt())
    beta = pyro.sample("beta", prior.expand([X.shape[1]]).to_event(1))
    with pyro.plate("data", len(X), subsample_size=batch_size) as i, poutine.scale(scale=w[i]):
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


@pytest.mark.parametrize("size", [None, 7])
def test_a_learned_sigma_counts_weights_as_the_declared_density_does(size):
    """By autograd of Pyro's density: N is the sum of the weights, I that of w r^2."""
    torch.set_default_dtype(torch.float64)
    aeb.testing.check_adaptation(
        sparse_weighted, X.double(), Y.double(), W.double(), batch_size=size
    )


@pytest.mark.parametrize("compile", [False, True])
def test_integer_weights_are_copies_of_data(compile, monkeypatch):
    """
    The steps of a run with weights, learned sigma included, are those with copied data. What is
    compiled runs without machine code.
    """
    monkeypatch.setattr(compiled_code, "compile_graph", lambda graph, inputs: graph)
    counts = 1 + torch.arange(N) % 3
    copies = torch.arange(N).repeat_interleave(counts)

    def run_sparse(*args):
        kernel = aeb.AEBKernel(
            sparse_weighted,
            aeb.SGLD(1e-3),
            aeb.StochasticApproximation(0.3),
            seed=0,
            compile=compile,
        )
        mcmc = MCMC(kernel, 8, 0, disable_progbar=True)
        mcmc.run(*args)
        return mcmc.get_samples()

    weighted = run_sparse(X, Y, counts.float())
    copied = run_sparse(X[copies], Y[copies], torch.ones(len(copies)))
    for name in ("beta", "sigma2"):
        torch.testing.assert_close(weighted[name], copied[name], rtol=1e-4, atol=1e-5)


def test_a_variance_by_a_closed_form_is_that_of_weighted_least_squares():
    def model():
        variance = pyro.sample("variance", dist.InverseGamma(2.0, 3.0))
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N), poutine.scale(scale=W):
            pyro.sample("y", dist.Normal(m, variance.sqrt()), obs=Y)

    adaptation = aeb.StochasticApproximation(1.0, latents={"variance": aeb.latents.ClosedForm()})
    draws = run_model(model, adaptation=adaptation, transition=aeb.SGLD(1e-14)).get_samples()
    square = (W * (Y - draws["m"][-1]).square()).sum()
    expected = (3.0 + 0.5 * square) / (2.0 + 1.0 + 0.5 * W.sum())
    torch.testing.assert_close(draws["variance"][-1], expected, rtol=1e-4, atol=0.0)


def test_a_learned_sigma_comes_to_the_weighted_mode():
    """A weight that is 0 and does not enter the likelihood: (6) is that of one variance."""

    def model():
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 3.0))
        prior = aeb.SSGL(1e-3, 1e-6, 0.5, sigma2.sqrt()).expand([1]).to_event(1)
        beta = pyro.sample("beta", prior, infer={"init_value": torch.zeros(1)})
        with pyro.plate("data", N), poutine.scale(scale=W):
            pyro.sample("y", dist.Normal(0.0 * beta, sigma2.sqrt()), obs=Y)

    draws = run_model(model, transition=aeb.SGLD(1e-14), draws=60).get_samples()
    expected = ((W * Y.square()).sum() + 6.0) / (W.sum() + 1.0 + 4.0 + 2.0)
    torch.testing.assert_close(draws["sigma2"][-1], expected, rtol=1e-3, atol=0.0)


def test_predictions_do_not_depend_on_weights_and_scores_are_per_datum():
    """Class weights, 3 of a rare class: they change what is learned, no probability or score."""
    labels = (X[:, 0] > 0.8).float()
    net = aeb.nn.bayesianize(torch.nn.Linear(P, 1), sparse=[], delta=0.5, sigma2=1.0)

    def model(x, y, w):
        logits = net(x).squeeze(-1)
        with pyro.plate("data", N, subsample=x), poutine.scale(scale=w):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    w = 1.0 + 2.0 * labels
    mcmc = MCMC(aeb.AEBKernel(model, aeb.SGLD(1e-2), seed=0), 20, 20, disable_progbar=True)
    mcmc.run(X, labels, w)
    predict = aeb.nn.PosteriorPredictive(model, mcmc)
    draws = mcmc.get_samples()
    logits = (X @ draws["weight"].transpose(-1, -2)).squeeze(-1) + draws["bias"]
    expected = torch.sigmoid(logits).mean(0)
    torch.testing.assert_close(predict(X, labels, w), expected)
    torch.testing.assert_close(predict(X, labels, 7.0 * w), expected)
    likelihood = torch.where(labels > 0, expected, 1.0 - expected)
    assert predict.evaluate(X, labels, w).average["nll"] == pytest.approx(
        float(-likelihood.log().mean())
    )


def test_a_likelihood_in_a_factor_cannot_be_predicted():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        with pyro.plate("data", N):
            pyro.factor("y", W * dist.Normal(m, 1.0).log_prob(y))

    mcmc = run_model(model, Y, adaptation=None)
    with raises_with("no observed site with a distribution", "obs=y", "poutine.scale"):
        aeb.nn.PosteriorPredictive(model, mcmc)(Y)


def test_a_distribution_whose_shape_is_a_plain_tuple():
    class Plain(dist.Normal):
        @property
        def batch_shape(self):
            return tuple(super().batch_shape)

    def observe(w):
        with poutine.scale(scale=W):
            pyro.sample("y", Plain(X @ w, 1.0), obs=Y)

    run_dense_model(observe)


# What is no weight of data


@pytest.mark.parametrize(
    "weights", [torch.ones(N, 1), torch.ones(N - 1), torch.ones(2, N)], ids=str
)
def test_weights_of_another_shape(weights):
    def observe(w):
        with poutine.scale(scale=weights):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)

    with raises_with("'y' is weighted", str(tuple(weights.shape)), "shape (20,)", "w[i]"):
        run_dense_model(observe)


@pytest.mark.parametrize("bad", [-1.0, 0.0, torch.nan])
def test_weights_that_are_not_positive(bad):
    weights = torch.where(torch.arange(N) == 3, bad, 1.0)

    def observe(w):
        with pyro.plate("data", N), poutine.scale(scale=weights):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)

    with raises_with("weights of data", "greater than 0", "poutine.mask"):
        run_dense_model(observe)


def test_weights_that_are_not_finite():
    def observe(w):
        with pyro.plate("data", N), poutine.scale(scale=torch.full((N,), torch.inf)):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)

    with raises_with("'y' is weighted", "20 of 20 weights", "greater than 0"):
        run_dense_model(observe)


def test_weights_that_depend_on_a_latent():
    def observe(w):
        with pyro.plate("data", N), poutine.scale(scale=(X @ w).exp()):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)

    with raises_with("'y' is weighted", "depend on a latent site", "pyro.factor"):
        run_dense_model(observe)


def test_one_weight_for_all_data_is_tempering():
    def observe(w):
        with pyro.plate("data", N), poutine.scale(scale=torch.tensor([0.1])):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)

    with raises_with("observed site 'y' is scaled by 0.1", "inverse_temperature", "weights"):
        run_dense_model(observe)


@pytest.mark.parametrize("site", ["sigma2", "delta"])
@pytest.mark.parametrize("handler", ["scale", "mask", "dist.mask"])
def test_a_prior_of_a_closed_form_under_a_handler(site, handler):
    handlers = {
        "scale": poutine.scale(scale=0.5),
        "mask": poutine.mask(mask=torch.tensor(False)),
    }
    priors = {"sigma2": dist.InverseGamma(1.5, 2.0), "delta": dist.Beta(2.0, 3.0)}
    if handler == "dist.mask":
        priors[site] = priors[site].mask(False)

    def model():
        def sample(name):
            return pyro.sample(name, priors[name])

        values = {
            name: handlers[handler](sample)(name)
            if name == site and handler in handlers
            else sample(name)
            for name in priors
        }
        prior = aeb.SSGL(0.1, 10.0, values["delta"], values["sigma2"].sqrt())
        beta = pyro.sample("beta", prior.expand([P]).to_event(1))
        pyro.sample("y", dist.Normal(X @ beta, 1.0).to_event(1), obs=Y)

    with raises_with(f"site {site!r} is under poutine.scale or poutine.mask", "observed sites"):
        run_model(model)
