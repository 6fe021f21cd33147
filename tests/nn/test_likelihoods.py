# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A network under several likelihoods: what is learned, its gradient, and a short run."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from modules import perceptron
from pyro import poutine
from pyro.infer import MCMC
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior

N = 12


def make_network(outputs: int) -> aeb.nn.BayesianModule:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, outputs)
    )
    delta, sigma2 = dist.Beta(2.0, 3.0), dist.InverseGamma(2.0, 2.0)
    return aeb.nn.bayesianize(module, delta=delta, sigma2=sigma2)


def categorical(net):
    def model(x, y=None):
        logits = net(x)
        with pyro.plate("data", N, subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model, torch.arange(N) % 3


def bernoulli(net):
    def model(x, y=None):
        logits = net(x)[:, 0]
        with pyro.plate("data", N, subsample=x):
            return pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model, (torch.arange(N) % 2).float()


def normal_with_the_networks_sigma(net):
    def model(x, y=None):
        mean = net(x)[:, 0]
        with pyro.plate("data", N, subsample=x):
            return pyro.sample("y", dist.Normal(mean, 2.0 * net.sigma2.sqrt()), obs=y)

    return model, torch.linspace(-1.0, 1.0, N)


def normal_with_a_fixed_scale(net):
    def model(x, y=None):
        mean = net(x)
        with pyro.plate("data", N, subsample=x):
            return pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y)

    return model, torch.linspace(-1.0, 1.0, 2 * N).reshape(N, 2)


def student_t_with_a_scale_of_its_own(net):
    def model(x, y=None):
        mean = net(x)[:, 0]
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", N, subsample=x):
            return pyro.sample("y", dist.StudentT(4.0, mean, scale), obs=y)

    return model, torch.linspace(-1.0, 1.0, N)


CASES = {
    case.__name__: (case, outputs)
    for case, outputs in (
        (categorical, 3),
        (bernoulli, 1),
        (normal_with_the_networks_sigma, 1),
        (normal_with_a_fixed_scale, 2),
        (student_t_with_a_scale_of_its_own, 1),
    )
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    make, outputs = request.param
    net = make_network(outputs)
    return net, *make(net), torch.randn(N, 4)


def test_the_gradient_is_that_of_the_scaled_log_density(case):
    net, model, y, x = case
    x, y = x[:5], y[:5]
    structure = inspect_model(model, (x, y), {}, adapt=True, loader_sizes=frozenset({N}))
    assert {block.name for block in structure.sparse} == set(net.sparse_sites)
    position = 0.3 * torch.randn(structure.size)
    latents = {"sigma2": torch.tensor(0.7), "0.delta": torch.tensor(0.2)}
    latents["2.delta"] = torch.tensor(0.4)
    posterior = Posterior(model, structure)
    found = posterior.likelihood.evaluate(position, latents, Batch(Arguments((x, y), {}), {}))

    at = position.clone().requires_grad_()
    sites = structure.unflatten(at)
    values = {**structure.constrain(sites), **latents}
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x, y)
    density = N / 5 * trace.nodes["y"]["fn"].log_prob(y).sum()
    if "scale" in values:  # the only site with a prior of no closed form, a positive one
        density = density + dist.HalfNormal(1.0).log_prob(values["scale"]) + sites["scale"].sum()
    (expected,) = torch.autograd.grad(density, at)
    torch.testing.assert_close(found.gradient, expected)


def test_sigma_learns_from_the_noise_only_where_it_is_the_noises(case):
    _, model, y, x = case
    structure = inspect_model(model, (x, y), {}, adapt=True)
    shared = model.__qualname__.startswith("normal_with_the_networks_sigma")
    assert structure.sigmas[0].likelihoods == (frozenset({"y"}) if shared else frozenset())


def test_a_run(case):
    net, model, y, x = case
    adaptation = aeb.StochasticApproximation(0.1)
    kernel = aeb.AEBKernel(model, aeb.SGHMC(1e-3), adaptation, steps_per_draw=3, seed=1)
    mcmc = MCMC(kernel, 5, 2, disable_progbar=True)
    mcmc.run(DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True))
    draws = mcmc.get_samples()
    assert all((draws[name][0] != draws[name][-1]).any() for name in net.sparse_sites)
    scores = aeb.nn.PosteriorPredictive(model, mcmc).evaluate(x, y)
    assert scores.draws == 5 and all(torch.tensor(list(scores.average.values())).isfinite())


def test_sigma2_has_a_value_once_the_network_was_called():
    net = make_network(1)
    with pytest.raises(RuntimeError, match="no value yet.*net.sigma2"):
        _ = net.sigma2
    trace = poutine.trace(net).get_trace(torch.zeros(1, 4))
    assert net.sigma2 is trace.nodes["sigma2"]["value"]
    with pytest.raises(RuntimeError, match="no value yet"):
        _ = pickle.loads(pickle.dumps(net)).sigma2
    fixed = aeb.nn.bayesianize(perceptron(), delta=0.5, sigma2=4.0)
    poutine.trace(fixed).get_trace(torch.zeros(1, 4))
    assert fixed.sigma2 == 4.0
    dense = aeb.nn.bayesianize(perceptron(), sparse=[], delta=0.5, sigma2=4.0)
    with pytest.raises(RuntimeError, match="no sparse layer"):
        _ = dense.sigma2
