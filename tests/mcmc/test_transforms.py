# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``transforms=`` from ``initialize_model`` would constrain draws twice, and is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from small_runs import X, Y, make_kernel, regression
from torch.distributions.transforms import AffineTransform, ExpTransform

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
    with pytest.raises(
        ValueError, match="take these sites to unconstrained space.*Leave out transforms="
    ):
        run(model, transforms)


@pytest.mark.parametrize("options", [{"chain_method": "vectorized"}, {"mp_context": "fork"}])
def test_with_several_chains(options):
    _, _, transforms, _ = initialize_model(scale)
    options = {"chain_method": "parallel", "num_chains": 2, **options}
    with pytest.raises(ValueError, match=r"the transforms of \['s'\] take"):
        run(scale, transforms, **options)


def test_those_of_a_learned_latent():
    transforms = {"delta": dist.biject_to(dist.Beta(2.0, 3.0).support).inv}
    with pytest.raises(ValueError, match=r"the transforms of \['delta'\] take"):
        run(regression, transforms, X, Y)


def test_those_that_are_right_are_taken():
    _, _, transforms, _ = initialize_model(plain)  # the identity
    draws = run(plain, transforms)["m"]
    assert torch.equal(draws, run(plain, None)["m"])
    # A change of units of one's own, and one that makes a real site positive.
    assert torch.equal(run(plain, {"m": AffineTransform(0.0, 0.5)})["m"], 2.0 * draws)
    assert torch.equal(run(plain, {"m": ExpTransform().inv})["m"], draws.exp())
    positive = run(scale, None)["s"]
    assert torch.equal(run(scale, {"s": AffineTransform(0.0, 0.5)})["s"], 2.0 * positive)
