# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Priors by layer, and prior means at pretrained weights."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from many_chains import run_together
from pyro import poutine
from pyro_runs import make_kernel, make_pyro_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.nn import bayesianize

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def make_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))


def make_net(module=None, sparse=("0", "2"), **options):
    options = {"delta": 0.5, "sigma2": 1.0, "dense_scale": 0.3, **options}
    return bayesianize(module or make_module(), sparse, **options)


def sites_of(net, x=X):
    return poutine.trace(net).get_trace(x).nodes


def test_options_by_layer_and_by_parameter():
    net = make_net(
        priors={
            "2": {"v0": 0.02, "v1": 5.0, "delta": dist.Beta(1.0, 3.0), "dense_scale": 0.7},
            "4": {"dense_scale": 2.0},
            "*.bias": {"dense_scale": 0.1},
            "0.bias": dist.Laplace(1.0, 2.0),
        },
    )
    sites = sites_of(net)
    first, second = (sites[f"{i}.weight"]["fn"].base_dist for i in (0, 2))
    assert (first.given["v0"], first.given["v1"]) == (0.1, 10.0)
    assert (second.given["v0"], second.given["v1"]) == (0.02, 5.0)
    assert net.latent_sites == ("2.delta",)
    assert sites["2.delta"]["fn"].concentration0 == 3.0
    scales = {n: sites[n]["fn"].base_dist.scale for n in ("2.bias", "4.bias", "4.weight")}
    expected = {"2.bias": 0.1, "4.bias": 0.1, "4.weight": 2.0}
    for name, scale in scales.items():
        torch.testing.assert_close(scale, torch.full_like(scale, expected[name]))
    laplace = sites["0.bias"]["fn"]
    assert type(laplace.base_dist) is dist.Laplace and laplace.event_shape == (3,)
    assert (laplace.base_dist.loc == 1.0).all() and (laplace.base_dist.scale == 2.0).all()
    assert "priors by layer" in repr(net)


def test_means_are_the_pretrained_weights_of_dense_layers():
    module = make_module()
    net = make_net(module, means="pretrained", priors={"4.bias": {"dense_scale": 0.01}})
    sites = sites_of(net)
    assert "means" not in sites["0.weight"]["fn"].base_dist.given
    for name in ("0.bias", "2.bias", "4.weight", "4.bias"):
        prior = sites[name]["fn"].base_dist
        assert torch.equal(prior.loc, module.get_parameter(name))
        assert not prior.loc.requires_grad
    assert (sites["4.bias"]["fn"].base_dist.scale == 0.01).all()
    again = copy.deepcopy(net).double()
    assert sites_of(again, X.double())["4.weight"]["fn"].base_dist.loc.dtype == torch.float64
    with torch.no_grad():
        net.module[4].weight.fill_(2.0)
    assert (sites_of(net)["4.weight"]["fn"].base_dist.loc == 2.0).all()


def test_the_posterior_is_that_of_the_prior_means():
    """A linear regression with known noise: normal, with the conjugate mean."""
    module = nn.Linear(4, 1, bias=False).double()
    net = make_net(module, [], means="pretrained", dense_scale=0.5)
    y = X.double().sum(1)

    def model(x, y):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    draws = run_together(model, aeb.SGLD(0.02), 1500, 20, X.double(), y, steps_per_draw=5)
    x, start = X.double(), module.weight.detach()[0]
    precision = x.T @ x + torch.eye(4, dtype=torch.float64) / 0.25
    expected = torch.linalg.solve(precision, x.T @ y + start / 0.25)
    spread = precision.inverse().diagonal().sqrt()
    found = draws["weight"][:, 0].mean(0)
    assert ((found - expected).abs() < 0.2 * spread).all()
    around_zero = torch.linalg.solve(precision, x.T @ y)
    assert ((expected - around_zero).abs() > 0.2 * spread).any()


def test_a_run_with_a_distribution_by_layer():
    net = make_net(priors={"4": dist.StudentT(3.0, 0.0, 0.1)})

    def model(x):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, 0])

    mcmc = make_pyro_mcmc(make_kernel(model, 1e-3))
    mcmc.run(X)
    assert mcmc.get_samples()["4.weight"].shape == (6, 1, 3)


@pytest.mark.parametrize(
    ("priors", "error", "words"),
    [
        ({"6": {"dense_scale": 1.0}}, ModelError, r"priors\['6'\] gives dense_scale.*no dense"),
        ({"4": {"v0": 1.0}}, ModelError, "gives v0 and finds no sparse weight"),
        ({"0.weight": dist.Normal(0.0, 1.0)}, ModelError, "finds no dense weight"),
        ({"0": {"sigma2": 1.0}}, ValueError, "option 'sigma2'.*one for all layers"),
        ({"0": {"v0": -1.0}}, ValueError, "v0 is -1.0"),
        ({"4": dist.Gamma(1.0, 1.0)}, ValueError, "one real number"),
        ({"4": dist.Normal(torch.zeros(3), 1.0)}, ValueError, "one real number"),
        ({"4": 0.1}, TypeError, "expected options by layer"),
        ([("4", {})], TypeError, "priors is .*expected a mapping"),
    ],
)
def test_what_does_not_fit_is_refused(priors, error, words):
    with pytest.raises(error, match=words):
        make_net(priors=priors)


def test_other_refusals():
    with pytest.raises(ValueError, match="means is 'zero', expected None or 'pretrained'"):
        make_net(means="zero")
    with pytest.raises(ModelError, match="'' have different options.*patterns for layers"):
        make_net(nn.LSTM(2, 2), ["*"], priors={"weight_ih_l0": {"v0": 1.0}})
