# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Links of SSGL parameters without a closed form: errors that say what to do."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from link_models import N, X, Y, inspect, observe, refusal_message, sample_latents, ssgl_prior
from models import P

from pyro_aeb import SSGL

# Models here lose links on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

# No closed form


def model_with_prior(make):
    """A model that makes its SSGL prior of sigma2 and delta by ``make``."""

    def model():
        beta = pyro.sample("beta", make(*sample_latents()).expand([P]).to_event(1))
        observe(X @ beta, 1.0)

    return model


@pytest.mark.parametrize(
    "make, parameter, expected",
    [
        (lambda s, d: ssgl_prior(d, s), "sigma", "the square root of the value"),
        (lambda s, d: ssgl_prior(d, 2.0 * s.sqrt()), "sigma", "the square root of the value"),
        (lambda s, d: ssgl_prior(d, 1.0 + s.sqrt()), "sigma", "the square root of the value"),
        (lambda s, d: ssgl_prior(0.5 * d, s.sqrt()), "delta", "the value"),
        (lambda s, d: ssgl_prior(1.0 - d, s.sqrt()), "delta", "the value"),
        (lambda s, d: ssgl_prior(d.clamp(max=0.5), s.sqrt()), "delta", "the value"),
    ],
    ids=["sigma2", "2 sigma", "1 + sigma", "delta / 2", "1 - delta", "clamped"],
)
def test_a_function_of_a_latent_is_an_error(make, parameter, expected):
    message = refusal_message(model_with_prior(make))
    assert f"SSGL site 'beta': {parameter} depends on site" in message
    assert f"is not {expected} of it, so it has no closed-form update" in message
    assert "adaptation=None" in message


@pytest.mark.parametrize(
    "site, fn",
    [
        ("delta", dist.Uniform(0.0, 1.0)),
        ("delta", dist.Kumaraswamy(2.0, 2.0)),
        ("sigma2", dist.LogNormal(0.0, 1.0)),
        ("sigma2", dist.Uniform(0.1, 1.0)),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else x,
)
def test_a_prior_without_a_closed_form_is_an_error(site, fn):
    def model():
        fns = {"sigma2": dist.InverseGamma(1.5, 2.0), "delta": dist.Beta(2.0, 3.0), site: fn}
        sigma2, delta = (pyro.sample(name, fns[name]) for name in ("sigma2", "delta"))
        pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))

    message = refusal_message(model)
    assert f"site {site!r} ~ {type(fn).__name__}, which has no closed-form update" in message
    cures = {"delta": ["Beta prior"], "sigma2": ["InverseGamma prior", "HalfCauchy, HalfNormal"]}
    assert all(cure in message for cure in cures[site])
    assert "adaptation=None" in message


@pytest.mark.parametrize(
    "of_sigma",
    [torch.sqrt, torch.square, lambda s: 2.0 * s, lambda s: 0.1 + s, lambda s: 1.0 / s],
    ids=["root", "square", "multiple", "sum", "inverse"],
)
@pytest.mark.parametrize(
    "prior",
    [dist.HalfCauchy(1.0), dist.HalfNormal(1.0), dist.Exponential(1.0), dist.Gamma(2.0, 2.0)],
    ids=lambda prior: type(prior).__name__,
)
def test_a_function_of_a_scale_is_an_error_that_asks_for_the_scale_itself(prior, of_sigma):
    def model():
        sigma = of_sigma(pyro.sample("sigma", prior))
        beta = pyro.sample("beta", ssgl_prior(0.5, sigma).expand([P]).to_event(1))
        observe(X @ beta, 1.0)

    message = refusal_message(model)
    assert "sigma depends on site 'sigma' but is not the value of it" in message
    assert "or the value itself of one with a HalfCauchy, HalfNormal" in message


@pytest.mark.parametrize("lose", [lambda b: b, float], ids=["tensor", "float"])
def test_a_hyperprior_of_a_scale_is_an_error(lose):
    def model():
        width = lose(pyro.sample("width", dist.HalfNormal(1.0)))
        sigma = pyro.sample("sigma", dist.HalfNormal(width))
        pyro.sample("beta", ssgl_prior(0.5, sigma).expand([P]).to_event(1))

    message = refusal_message(model)
    assert "site 'sigma', whose own prior" in message and "expected fixed numbers" in message


@pytest.mark.parametrize("lose", [lambda b: b, float], ids=["tensor", "float"])
@pytest.mark.parametrize("site", ["delta", "sigma2"])
def test_a_hyperprior_is_an_error(site, lose):
    def model():
        b = lose(pyro.sample("b", dist.Gamma(2.0, 1.0)))
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, b if site == "sigma2" else 2.0))
        delta = pyro.sample("delta", dist.Beta(2.0, b if site == "delta" else 3.0))
        pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))

    message = refusal_message(model)
    assert f"site {site!r}" in message
    assert "whose own prior" in message and "expected fixed numbers" in message


@pytest.mark.parametrize("parameter", ["delta", "sigma"])
def test_fixed_latents_of_several_values_are_an_error(parameter):
    values = {"delta": 0.5, "sigma": 1.0, parameter: torch.tensor([0.25, 0.5, 0.75])}
    message = refusal_message(model_with_prior(lambda s, d: ssgl_prior(**values)))
    assert f"SSGL site 'beta': {parameter} is a tensor of different numbers" in message
    assert "expected one number" in message and "split the site" in message


@pytest.mark.parametrize("lose", [lambda x: x, float], ids=["tensor", "float"])
@pytest.mark.parametrize("parameter", ["v0", "v1"])
def test_v0_and_v1_are_not_learned(parameter, lose):
    def model():
        scale = lose(pyro.sample("scale", dist.HalfNormal(1.0)))
        values = {"v0": 0.1, "v1": 10.0, parameter: scale}
        pyro.sample("beta", SSGL(**values, delta=0.5).expand([P]).to_event(1))

    message = refusal_message(model)
    assert f"SSGL site 'beta': {parameter}" in message and "expected a number" in message


# Something else that depends on a learned latent


def model_with_use(use):
    """A model in which ``use(sigma2, delta, beta)`` makes a site depend on a learned latent."""

    def model():
        sigma2, delta = sample_latents()
        beta = pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))
        use(sigma2, delta, beta)

    return model


def a_tail_that_moves(sigma2, delta, beta):
    with pyro.plate("data", N):
        pyro.sample("y", dist.StudentT(3.0 + delta, X @ beta, sigma2.sqrt()), obs=Y)


def a_heavier_likelihood(sigma2, delta, beta):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Cauchy(X @ beta, sigma2.sqrt()), obs=Y)


def a_variance_for_a_scale(sigma2, delta, beta):
    observe(X @ beta, sigma2)


def a_sum_of_scales(sigma2, delta, beta):
    observe(X @ beta, 0.5 + sigma2.sqrt())


def a_mean(sigma2, delta, beta):
    observe(X @ beta + delta, sigma2.sqrt())


def a_masked_distribution(sigma2, delta, beta):
    with pyro.plate("data", N):
        pyro.sample("y", dist.LogNormal(X @ beta, sigma2.sqrt()), obs=Y.exp())


def another_latent(sigma2, delta, beta):
    pyro.sample("w", dist.Normal(0.0, sigma2.sqrt()))


def another_latent_with_its_own_scale(sigma2, delta, beta):
    pyro.sample("w", dist.HalfCauchy(delta))


def a_factor(sigma2, delta, beta):
    pyro.factor("penalty", -sigma2)


@pytest.mark.parametrize(
    "use, site",
    [
        (a_tail_that_moves, "observed site 'y' ~ StudentT"),
        (a_heavier_likelihood, "observed site 'y' ~ Cauchy"),
        (a_variance_for_a_scale, "observed site 'y' ~ Normal"),
        (a_sum_of_scales, "observed site 'y' ~ Normal"),
        (a_mean, "observed site 'y' ~ Normal"),
        (a_masked_distribution, "observed site 'y' ~ LogNormal"),
        (another_latent, "latent site 'w' ~ Normal"),
        (another_latent_with_its_own_scale, "latent site 'w' ~ HalfCauchy"),
        (a_factor, "site 'penalty'"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_nothing_else_may_depend_on_a_learned_latent(use, site):
    message = refusal_message(model_with_use(use))
    assert site in message and "no closed-form update" in message
    assert "Normal" in message and "c * sigma, that is c * sigma2.sqrt()" in message
    assert "a site of its own" in message and "adaptation=None" in message


def a_mean_at_zero(sigma2, delta, beta):
    """Does not depend on sigma2 where beta = 0."""
    observe(X @ (beta * sigma2.sqrt()), sigma2.sqrt())


def logits_at_zero(sigma2, delta, beta):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Bernoulli(logits=X @ (delta * beta)), obs=(Y > 0).float())


def a_scale_at_zero(sigma2, delta, beta):
    """Is sigma where beta = 0."""
    observe(X @ beta, sigma2.sqrt() + (X @ beta) ** 2)


def logits_with_equal_weights(sigma2, delta, beta):
    """Do not depend on sigma2 where all weights are the same: softmax ignores a common shift."""
    W = pyro.sample("W", dist.Normal(0.0, 1.0).expand([P, 4]).to_event(2))
    with pyro.plate("data", N):
        labels = torch.arange(N) % 4
        pyro.sample("y", dist.Categorical(logits=X @ W * sigma2.sqrt()), obs=labels)


def a_contrast_of_weights(sigma2, delta, beta):
    """Does not depend on delta where all weights are the same."""
    observe(delta * (beta[0] - beta[1]) * X[:, 0], 1.0)


def a_deep_network(sigma2, delta, beta):
    """Its outputs overflow, or vanish, where its weights are moved without regard to its depth."""
    observe(deep_mean() * sigma2.sqrt(), 1.0)


def deep_mean(depth=30, width=32):
    h = X
    for layer in range(depth):
        prior = dist.Normal(0.0, 1.0).expand([h.shape[-1], width]).to_event(2)
        h = torch.relu(h @ pyro.sample(f"w{layer}", prior))
    return h.sum(-1)


@pytest.mark.parametrize(
    "use",
    [
        a_mean_at_zero,
        logits_at_zero,
        a_scale_at_zero,
        logits_with_equal_weights,
        a_contrast_of_weights,
        a_deep_network,
    ],
    ids=lambda use: use.__name__,
)
def test_a_dependence_is_seen_wherever_it_hides(use):
    message = refusal_message(model_with_use(use))
    assert "observed site 'y'" in message and "no closed-form update" in message


@pytest.mark.parametrize("validate", [True, False])
def test_a_deep_network_without_such_a_dependence_is_fine(validate):
    def model():
        sigma2, delta = sample_latents()
        beta = pyro.sample("beta", ssgl_prior(delta, sigma2.sqrt()).expand([P]).to_event(1))
        observe(X @ beta + deep_mean(), sigma2.sqrt())

    with pyro.validation_enabled(validate):
        assert inspect(model).sigmas[0].likelihoods == {"y"}


def test_without_adaptation_anything_may_depend_on_anything():
    for use in (a_tail_that_moves, another_latent, a_factor, a_mean_at_zero):
        found = inspect(model_with_use(use), adapt=False)
        assert {"sigma2", "delta", "beta"} <= {block.name for block in found.general}
