# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``transforms=`` from ``initialize_model`` would constrain draws twice, and is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from refusals import raises_with
from small_runs import make_kernel
from torch.distributions.transforms import AffineTransform

import pyro_aeb as aeb


def scale():
    pyro.sample("s", dist.LogNormal(0.0, 0.3))


def shares():
    with pyro.plate("groups", 2):
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))


def factor():
    pyro.sample("L", dist.LKJCholesky(3, 2.0))


def bounded():
    pyro.sample("u", dist.Uniform(2.0, 3.0).expand([4]).to_event(1))


def plain():
    pyro.sample("m", dist.Normal(1.0, 0.1))


def run(model, transforms, *args, **options):
    kernel = make_kernel(model, aeb.SGLD(1e-3), steps_per_draw=1)
    mcmc = aeb.MCMC(kernel, 20, 5, transforms=transforms, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc.get_samples()


@pytest.mark.parametrize("model", [scale, shares, factor, bounded])
def test_those_of_initialize_model_are_refused(model):
    _, _, transforms, _ = initialize_model(model)
    with raises_with("lead to unconstrained space", "Leave out transforms=", error=ValueError):
        run(model, transforms)


def test_those_that_are_right_are_taken():
    _, _, transforms, _ = initialize_model(plain)  # the identity
    draws = run(plain, transforms)["m"]
    assert torch.equal(draws, run(plain, None)["m"])
    # A change of units.
    assert torch.equal(run(plain, {"m": AffineTransform(0.0, 0.5)})["m"], 2.0 * draws)
    positive = run(scale, None)["s"]
    assert torch.equal(run(scale, {"s": AffineTransform(0.0, 0.5)})["s"], 2.0 * positive)


def test_initial_values_of_initialize_model_are_taken():
    first, _, _, _ = initialize_model(scale)
    kernel = make_kernel(scale, aeb.SGLD(1e-9), steps_per_draw=1)
    mcmc = aeb.MCMC(kernel, 2, 0, initial_params=first, disable_progbar=True)
    mcmc.run()
    start = first["s"].exp()
    torch.testing.assert_close(mcmc.get_samples()["s"], start.expand(2), rtol=1e-3, atol=0.0)
