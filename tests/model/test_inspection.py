# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The structure of models: the kind of every site, and its place in the flat position."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    DenseNetwork,
    P,
    dense_regression,
    double_regression,
    eight_schools,
    linear_data,
    sparse_layers,
    sparse_regression,
)
from pyro import poutine

from pyro_aeb import SSGL, ModelError
from pyro_aeb.model.inspection import inspect_model

# Models here lose links on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

X, Y = linear_data()
N = len(X)


def inspect(model, *args, adapt=True, **kwargs):
    return inspect_model(model, args, kwargs, adapt=adapt)


def site_names(blocks) -> list[str]:
    return [block.name for block in blocks]


# Kinds of sites


def test_sparse_weights_come_first_then_normal_ones_then_all_others():
    def model():
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        w0 = pyro.sample("w0", SSGL(0.1, 10.0, 0.5).expand([2]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, tau))
        w1 = pyro.sample("w1", SSGL(0.1, 10.0, 0.5).expand([2, 3]).to_event(2))
        pyro.sample("y", dist.Normal(a + b + w0.sum() + w1.sum(), tau), obs=torch.zeros(()))

    found = inspect(model)
    assert site_names(found.sparse) == ["w0", "w1"]
    assert site_names(found.normal) == ["a"]
    assert site_names(found.general) == ["tau", "b"]
    assert site_names(found.blocks) == ["w0", "w1", "a", "tau", "b"]
    assert (found.sparse_size, found.size) == (2 + 6, 2 + 6 + 1 + 1 + 1)
    assert found.observed == ("y",)


def test_a_network_of_pyros_tutorials():
    network = DenseNetwork()
    found = inspect(network, X, Y)
    assert site_names(found.normal) == ["first.weight", "first.bias", "last.weight"]
    assert site_names(found.general) == ["scale"]
    weight, bias, last = found.normal
    assert (weight.shape, bias.shape, last.shape) == ((4, P), (4,), (1, 4))
    assert (bias.scale == 2.0).all() and bias.scale.shape == (4,)
    assert (last.loc == 0.5).all() and last.loc.shape == (1, 4)


def test_a_normal_prior_that_depends_on_a_site_is_no_fixed_normal_prior():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("by_loc", dist.Normal(mu, 1.0))
        pyro.sample("by_scale", dist.Normal(0.0, tau).expand([2]).to_event(1))
        pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    found = inspect(model)
    assert site_names(found.normal) == ["mu"]
    assert site_names(found.general) == ["tau", "by_loc", "by_scale"]


def test_a_handler_around_a_normal_prior_is_heeded():
    def model():
        with poutine.scale(scale=0.5):
            pyro.sample("scaled", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=False):
            pyro.sample("masked", dist.Normal(0.0, 1.0))
        pyro.sample("plain", dist.Normal(0.0, 1.0))

    found = inspect(model)
    assert site_names(found.normal) == ["plain"]
    assert site_names(found.general) == ["scaled", "masked"]


def test_deterministic_sites_and_plates_are_no_sites_of_the_structure():
    found = inspect(eight_schools, SCHOOLS_SIGMA, SCHOOLS_Y)
    assert site_names(found.blocks) == ["mu", "eta", "tau"]
    assert found.observed == ("y",)
    assert "theta" not in found.dims and "schools" not in found.dims


def test_a_model_is_sampled_whole_where_nothing_is_to_be_learned():
    found = inspect(sparse_layers, X, Y, adapt=False)
    assert not found.sparse and not found.normal
    assert site_names(found.general) == ["sigma2", "delta0", "w0", "delta1", "w1"]


def test_a_model_without_ssgl_has_nothing_to_learn():
    adapted, plain = (inspect(dense_regression, X, Y, adapt=adapt) for adapt in (True, False))
    assert site_names(adapted.blocks) == site_names(plain.blocks) == ["w"]
    assert adapted.latent_sites == ()


# Shapes and spaces

TENSOR = torch.ones(3)
PRIORS = {  # a prior that depends on a positive scalar, the shape of a value in unconstrained space
    "Normal": (lambda s: dist.Normal(0.0, s), ()),
    "Cauchy": (lambda s: dist.Cauchy(0.0, s), ()),
    "Laplace": (lambda s: dist.Laplace(0.0, s), ()),
    "StudentT": (lambda s: dist.StudentT(3.0, 0.0, s), ()),
    "HalfNormal": (lambda s: dist.HalfNormal(s), ()),
    "HalfCauchy": (lambda s: dist.HalfCauchy(s), ()),
    "Exponential": (lambda s: dist.Exponential(s), ()),
    "Gamma": (lambda s: dist.Gamma(s, 1.0), ()),
    "InverseGamma": (lambda s: dist.InverseGamma(s, 1.0), ()),
    "LogNormal": (lambda s: dist.LogNormal(0.0, s), ()),
    "Weibull": (lambda s: dist.Weibull(s, 1.0), ()),
    "Beta": (lambda s: dist.Beta(s, 1.0), ()),
    "Dirichlet": (lambda s: dist.Dirichlet(s * TENSOR), (2,)),
    "MultivariateNormal": (lambda s: dist.MultivariateNormal(TENSOR, s * torch.eye(3)), (3,)),
    "LKJCholesky": (lambda s: dist.LKJCholesky(3, s), (3,)),
    "SSGL": (lambda s: SSGL(0.1, 10.0, 0.5, s), ()),
    "batch": (lambda s: dist.HalfCauchy(s * torch.ones(2, 3)).to_event(2), (2, 3)),
}


@pytest.mark.parametrize("prior, shape", PRIORS.values(), ids=PRIORS)
def test_a_site_with_a_prior_that_depends_on_another_keeps_its_shape(prior, shape):
    def model():
        pyro.sample("x", prior(pyro.sample("s", dist.Gamma(2.0, 2.0))))

    by_name = {block.name: block for block in inspect(model, adapt=False).blocks}
    assert by_name["x"].shape == torch.Size(shape)
    assert by_name["s"].shape == ()


def test_transforms_lead_to_the_support():
    def model():
        pyro.sample("real", dist.Cauchy(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("vector", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        pyro.sample("positive", dist.HalfCauchy(1.0).expand([2]).to_event(1))
        pyro.sample("interval", dist.Uniform(-1.0, 3.0))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))

    by_name = {block.name: block for block in inspect(model).blocks}
    assert by_name["real"].transform is None and by_name["vector"].transform is None
    zeros = {
        name: block.transform(torch.zeros(block.shape))
        for name, block in by_name.items()
        if block.transform
    }
    torch.testing.assert_close(zeros["positive"], torch.ones(2))  # exp(0)
    torch.testing.assert_close(zeros["interval"], torch.tensor(1.0))  # the middle
    torch.testing.assert_close(zeros["simplex"], torch.full([3], 1 / 3))


def test_dims_are_named_after_plates():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4, dim=-2):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("c", dist.Dirichlet(torch.ones(5)))
        with pyro.plate("columns_again", 3):
            pyro.sample("d", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(a + b.sum(), 1.0), obs=Y)

    dims = inspect(model).dims
    assert dims["a"] == ()
    assert dims["b"] == ("rows", None)
    assert dims["c"] == ("rows", "columns", None)
    assert dims["d"] == ("columns_again", None)
    assert dims["y"] == ("data",)


# Plates and data


def test_plates_have_their_size_and_subsample_size():
    found = inspect(sparse_regression, X, Y, batch_size=5)
    assert found.plates == {"features": (P, P), "data": (N, 5)}
    assert not found.observations  # a subsample is not the data
    whole = inspect(sparse_regression, X, Y)
    assert whole.plates["data"] == (N, N)
    assert torch.equal(whole.observations["y"], Y)


def test_a_plate_that_the_model_subsamples_itself_gets_no_indices():
    def model(indices):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample=indices) as i:
            pyro.sample("y", dist.Normal(X[i] @ w, 1.0), obs=Y[i])

    found = inspect(model, torch.tensor([3, 1, 4]))
    assert "data" not in found.plates
    assert not found.observations


def test_nested_subsampled_plates():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 6, subsample_size=2, dim=-2) as i:
            with pyro.plate("columns", 8, subsample_size=4, dim=-1) as j:
                pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.ones(6, 8)[i][:, j])

    assert inspect(model).plates == {"rows": (6, 2), "columns": (8, 4)}


def test_sequential_plates():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 3):
            pyro.sample(f"y{i}", dist.Normal(mu, 1.0), obs=Y[i])

    found = inspect(model)
    assert found.plates == {"data": (3, 3)}
    assert found.observed == ("y0", "y1", "y2")
    assert [float(found.observations[f"y{i}"]) for i in range(3)] == Y[:3].tolist()


def test_a_factor_is_part_of_the_model_but_no_datum():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -mu.square())
        pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[0])

    assert inspect(model).observations.keys() == {"y"}


def test_data_may_be_masked():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N), poutine.mask(mask=Y > 0):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=Y)

    assert torch.equal(inspect(model).observations["y"], Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_position_has_the_dtype_of_the_sites(dtype):
    found = inspect(double_regression, X.to(dtype), Y.to(dtype))
    assert found.dtype == dtype and found.device == torch.device("cpu")


def test_flattened_sites_are_views_of_the_position():
    found = inspect(sparse_layers, X, Y)
    position = torch.arange(float(found.size))
    parts = found.unflatten(position)
    assert {name: part.shape for name, part in parts.items()} == {"w0": (P, 4), "w1": (4, 1)}
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts.values()]), position)
    parts["w1"].zero_()
    assert (position[P * 4 :] == 0.0).all()
    chains = found.unflatten(torch.zeros(7, found.size))
    assert chains["w0"].shape == (7, P, 4)


# What inspecting a model leaves as it was


def test_inspection_changes_nothing():
    network = DenseNetwork()
    network.norm(torch.randn(8, 4) + 3.0)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for adapt in (True, False):
        inspect(network, X, Y, adapt=adapt)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in network.named_buffers())
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


def test_fixed_priors_of_learnable_parameters_carry_no_gradient():
    def model():
        loc = pyro.param("loc", torch.zeros(P))
        w = pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=torch.zeros(()))

    (block,) = inspect(model).normal
    assert not block.loc.requires_grad and not block.scale.requires_grad


# Links that are lost among the other sites: the density would be right, but not its gradient


def observe(mean, scale=1.0):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(mean, scale), obs=Y)


def a_dense_prior(tau):
    observe(X @ pyro.sample("w", dist.Normal(0.0, float(tau[0])).expand([P]).to_event(1)))


def a_vector(tau):
    observe(X @ pyro.sample("w", dist.Normal(0.0, torch.tensor(tau.tolist())).to_event(1)))


def a_general_prior(tau):
    observe(X @ pyro.sample("w", dist.Laplace(0.0, tau[0].item()).expand([P]).to_event(1)))


def a_likelihood(tau):
    observe(X @ pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1)), float(tau[0]))


def a_detached_mean(tau):
    observe(X @ pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1)).detach(), tau[0])


@pytest.mark.parametrize(
    "rest, site",
    [
        (a_dense_prior, "w"),
        (a_vector, "w"),
        (a_general_prior, "w"),
        (a_likelihood, "y"),
        (a_detached_mean, "y"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("adapt", [True, False])
def test_a_lost_link_among_other_sites_is_an_error(rest, site, adapt):
    def model():
        rest(pyro.sample("tau", dist.HalfNormal(1.0).expand([P]).to_event(1)))

    with pytest.raises(ModelError, match=rf"site '{site}'.*float\(x\)"):
        inspect(model, adapt=adapt)


@torch.jit.script
def scripted(x):
    return torch.tanh(x) * 2.0


def by_script(b):
    return scripted(b) * X[:, 0]


def by_vmap(b):
    return torch.vmap(lambda x: x * b)(X[:, 0])


def by_assignment(b):
    mean = torch.zeros(N)
    mean[2] = b
    return mean


@pytest.mark.parametrize("mean", [by_script, by_vmap, by_assignment], ids=lambda f: f.__name__)
def test_a_link_that_only_provenance_loses_is_none_that_is_lost(mean):
    """A gradient flows through what Pyro's provenance does not follow."""

    def model():
        observe(mean(pyro.sample("b", dist.Normal(0.0, 1.0))))

    assert site_names(inspect(model).blocks) == ["b"]


def test_a_normal_prior_is_fixed_only_if_it_stays_where_other_sites_move():
    def model():
        tau = pyro.sample("tau", dist.HalfNormal(1.0).expand([P]).to_event(1))
        observe(X @ pyro.sample("w", dist.Normal(0.0, scripted(tau)).to_event(1)))

    found = inspect(model)
    assert site_names(found.normal) == [] and site_names(found.general) == ["tau", "w"]


def test_a_support_that_depends_on_a_site_is_an_error():
    def model():
        upper = pyro.sample("upper", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Uniform(0.0, upper))

    with pytest.raises(ModelError, match="site 'x' ~ Uniform.*support"):
        inspect(model)


@pytest.mark.parametrize(
    "prior",
    [
        lambda: dist.MixtureSameFamily(dist.Categorical(TENSOR), dist.Normal(TENSOR, 1.0)),
        lambda: dist.ProjectedNormal(TENSOR),
    ],
    ids=["mixture", "sphere"],
)
def test_a_support_without_a_bijection_is_an_error_that_names_the_site(prior):
    def model():
        pyro.sample("x", prior())

    with pytest.raises(ModelError, match="site 'x'"):
        inspect(model)
