# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The words on what tuning has found: they name the site to mend, whichever shows it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import sparse_regression
from pyro_runs import ADAPTATION
from runs import X, Y

import pyro_aeb as aeb
from pyro_aeb.tuning.report import reparametrise, temperature_warnings

ERRORS = torch.tensor([15.0, 10.0, 16.0])


def centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def not_centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 3):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, ERRORS), obs=y)


def funnel(y):
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (0.5 * v).exp()).to_event(1))


def three_levels(y):
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    middle = pyro.sample("middle", dist.StudentT(4.0, top, 1.0).expand([2]).to_event(1))
    low = pyro.sample("low", dist.Normal(middle.mean(), scale).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(low.mean(), ERRORS).to_event(1), obs=y)


def parents_of(model, *args, adaptation=None) -> dict[str, list[str]]:
    kernel = aeb.AEBKernel(model, adaptation=adaptation, seed=1)
    kernel.setup(1, *args)
    return kernel.tuning.parents


@pytest.mark.parametrize(
    "model, parents",
    [
        (centred, {"theta": ["mu", "tau"]}),
        (not_centred, {}),
        (funnel, {"x": ["v"]}),
        (three_levels, {"middle": ["top"], "low": ["middle", "scale"]}),
    ],
)
def test_priors_that_depend_on_sampled_sites_are_found(model, parents):
    assert parents_of(model, ERRORS) == parents


def test_a_spike_and_slab_site_with_learned_latents_has_no_sampled_parents():
    assert parents_of(sparse_regression, X, Y, adaptation=ADAPTATION) == {}


@pytest.mark.parametrize("hot", ["mu", "tau", "theta"])
@pytest.mark.parametrize("minibatches", [False, True])
def test_the_same_site_is_named_whichever_is_hot(hot, minibatches):
    heat = {"mu": 1.0, "tau": 1.0, "theta": 1.0, "sigma": 1.0, hot: 1.25}
    (said,) = temperature_warnings(heat, minibatches, {"theta": ["mu", "tau"], "b": ["a"]})
    assert f"of site {hot!r} is 1.25" in said
    assert "reparametrise the sites whose priors depend on others ('theta' depends on" in said
    assert "'b'" not in said and "LocScaleReparam" in said


def test_a_site_without_a_hierarchy_is_named_itself():
    assert reparametrise(["sigma"], {"theta": ["mu"]}).startswith("reparametrise it, e.g.")
    many = {f"x{i}": ["scale"] for i in range(5)}
    assert "'x2' depends on 'scale' and 2 more)" in reparametrise(["scale"], many)
