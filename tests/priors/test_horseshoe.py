# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The horseshoe and automatic relevance determination: hierarchies with a closed form at every level.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_aeb as aeb
from pyro_aeb import priors
from pyro_aeb.model.inspection import inspect_model

P = 4
X = torch.randn(30, P, generator=torch.Generator().manual_seed(5))
Y = X @ torch.tensor([2.0, 0.0, 0.0, -1.0])
BETA = torch.tensor([1.5, 0.1, -0.02, -0.7])


def horseshoe_model(x, y):
    beta = priors.horseshoe("beta", [P], scale=0.5)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def ard_model(x, y):
    alpha = pyro.sample("alpha", dist.Gamma(1.5, 0.1).expand([P]).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(P), alpha.rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


MODELS = {
    "horseshoe": (horseshoe_model, priors.horseshoe_latents("beta")),
    "ARD": (ard_model, {"alpha": aeb.latents.ClosedForm()}),
}


def make_kernel(name, weight=1.0, step_size=1e-6, **options):
    model, latents = MODELS[name]
    adaptation = aeb.StochasticApproximation(weight, latents=latents)
    return aeb.AEBKernel(model, aeb.SGLD(step_size), adaptation, seed=1, **options)


@pytest.mark.parametrize("name", MODELS)
def test_every_level_has_a_closed_form(name):
    model, latents = MODELS[name]
    structure = inspect_model(model, (X, Y), {}, adapt=True, latents=latents)
    assert {site.name for site in structure.learned} == latents.keys()
    assert [block.name for block in structure.blocks] == ["beta"]


def first_update(name, values):
    """All latents after one step with weight 1 from given values, the weights at rest."""
    values = {"beta": BETA, **values}
    run = make_kernel(
        name, step_size=1e-12, init_strategy=lambda site: values[site["name"]].clone()
    )
    run.setup(0, X, Y)
    run.sample(run.initial_params)
    return run.chain.values()


def test_the_m_steps_of_the_horseshoe():
    values = {
        "beta.lambda2": torch.tensor([2.0, 0.3, 0.1, 1.0]),
        "beta.nu": torch.tensor([0.4, 3.0, 8.0, 1.5]),
        "beta.tau2": torch.tensor(0.6),
        "beta.xi": torch.tensor(2.5),
    }
    found = first_update("horseshoe", values)
    lambda2, nu, tau2, xi = values.values()
    # The laws of Makalic and Schmidt, each InverseGamma(a, b) with its mode b / (a + 1).
    rate = 1 / nu + BETA.square() / (2 * tau2)  # a = 1
    torch.testing.assert_close(found["beta.lambda2"], rate / 2, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found["beta.nu"], (1 + 1 / lambda2) / 2, rtol=1e-4, atol=0.0)
    rate = 1 / xi + (BETA.square() / (2 * lambda2)).sum()  # a = (P + 1) / 2
    torch.testing.assert_close(found["beta.tau2"], rate / (P / 2 + 1.5), rtol=1e-4, atol=0.0)
    rate = 1 / 0.5**2 + 1 / tau2  # a = 1, the half-Cauchy of scale 0.5
    torch.testing.assert_close(found["beta.xi"], rate / 2, rtol=1e-4, atol=0.0)


def test_the_m_step_of_ard():
    found = first_update("ARD", {"alpha": torch.tensor([0.5, 9.0, 2.0, 1.0])})
    # Gamma(1.5 + 1/2, 0.1 + beta^2 / 2) has its mode at (a - 1) / b.
    expected = 1.0 / (0.1 + BETA.square() / 2)
    torch.testing.assert_close(found["alpha"], expected, rtol=1e-4, atol=0.0)


def test_the_hierarchy_is_the_horseshoe():
    # lambda and tau are half-Cauchy of scale 1 and 0.5: the medians are their scales.
    draws = [poutine.trace(horseshoe_model).get_trace(X, Y).nodes for _ in range(500)]
    tau = torch.stack([nodes["beta.tau2"]["value"] for nodes in draws]).sqrt()
    local = torch.stack([nodes["beta.lambda2"]["value"] for nodes in draws]).sqrt()
    # The number below the median is binomial.
    for values, scale in ((tau, 0.5), (local[:, 0], 1.0)):
        below = (values < scale).double().mean()
        assert abs(below - 0.5) < 5 * 0.5 / math.sqrt(500)
    beta = torch.stack([nodes["beta"]["value"] for nodes in draws])
    standard = beta / (tau.unsqueeze(-1) * local)
    assert abs(standard.std() - 1) < 5 / math.sqrt(2 * standard.numel())


@pytest.mark.parametrize("name", MODELS)
def test_it_finds_the_weights(name):
    weight = aeb.Polynomial(10.0, 100.0, 0.7)
    run = aeb.MCMC(make_kernel(name, weight, 1e-3), 150, 150, disable_progbar=True)
    run.run(X, Y + 0.5 * torch.randn(30))
    mean = run.get_samples()["beta"].mean(0)
    found = mean.abs() > 0.5
    assert found.tolist() == [True, False, False, True]


def test_weights_of_any_shape_and_kind():
    one = torch.ones((), dtype=torch.float64)
    sites = poutine.trace(priors.horseshoe).get_trace("w", [2, 3], one).nodes
    for name, shape in {"w": (2, 3), "w.lambda2": (2, 3), "w.nu": (2, 3), "w.tau2": ()}.items():
        assert sites[name]["value"].shape == shape
        assert sites[name]["value"].dtype == torch.float64
    assert sites["w"]["fn"].event_shape == (2, 3)
