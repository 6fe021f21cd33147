# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Networks that a model calls several times, and models of several networks."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope
from pyro.infer import MCMC, NUTS
from pyro_runs import make_kernel, make_pyro_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.nn import PosteriorPredictive, bayesianize
from pyro_aeb.posterior import compiled_code

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
Y = torch.randn(8, generator=torch.Generator().manual_seed(2))
PRIORS = {"delta": dist.Beta(1.0, 1.0), "sigma2": dist.InverseGamma(2.0, 2.0)}


def make_model(mean):
    def model(x, y=None):
        loc = mean(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return model


def make_net(**options):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    return bayesianize(layers, **PRIORS, **options)


def twice(net):
    return make_model(lambda x: net(x) - net(-x))


def at_once(net):
    def mean(x):
        first, second = net(torch.cat([x, -x])).chunk(2)
        return first - second

    return make_model(mean)


def test_a_net_called_twice_runs_as_called_once_with_both_inputs():
    runs = []
    for form in (twice, at_once):
        model = form(make_net())
        runs.append(make_pyro_mcmc(make_kernel(model, 1e-3)))
        runs[-1].run(X, Y)
        runs[-1].found = PosteriorPredictive(model, runs[-1])(X).mean
    for name, draws in runs[0].get_samples().items():
        torch.testing.assert_close(draws, runs[1].get_samples()[name])
    torch.testing.assert_close(runs[0].found, runs[1].found)


def odeint(f, x):
    for _ in range(3):
        x = x + 0.1 * f(x)
    return x[:, 0]


FORMS = {
    "siamese": lambda f, x: (f(x) - f(-x))[:, 0],
    "ordinary differential equation": odeint,
    "consistency": lambda f, x: f(x)[:, 0] + (f(x[:2]) - f(x[:2] + 0.1)).square().sum(),
}


def make_pair(form):
    """Return a model of a network, and the same model written by hand."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    start = {name: p.detach().clone() for name, p in layer.named_parameters()}
    net = bayesianize(layer, sparse=[], delta=0.5, sigma2=1.0)

    def by_hand(x, y=None):
        w, b = (
            pyro.sample(
                name,
                dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim()),
                infer={"init_value": value},
            )
            for name, value in start.items()
        )
        loc = FORMS[form](lambda x: (x @ w.T + b).tanh(), x)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return make_model(lambda x: FORMS[form](lambda x: net(x).tanh(), x)[:, None]), by_hand


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_steps_are_those_of_a_model_written_by_hand(form, method):
    runs, means = [], []
    for model in make_pair(form):
        kernel = make_kernel(model, 0.01, adaptation=None)
        runs.append(aeb.MCMC(kernel, 4, 1, num_chains=2, chain_method=method))
        runs[-1].run(X, Y)
        means.append(PosteriorPredictive(model, runs[-1])(X).mean)
    found, expected = (run.get_samples() for run in runs)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(*means)


def test_compiled_steps_are_those_of_a_model_written_by_hand(monkeypatch):
    """Without machine code: what the compiler gets runs as it is."""
    monkeypatch.setattr(compiled_code, "compile_graph", lambda graph, inputs: graph)
    draws = []
    for model in make_pair("siamese"):
        run = make_pyro_mcmc(make_kernel(model, 0.01, adaptation=None, compile=True))
        run.run(X, Y)
        draws.append(run.get_samples())
    for name in draws[0]:
        torch.testing.assert_close(draws[0][name], draws[1][name])


def test_a_scope_gives_calls_weights_of_their_own():
    net = bayesianize(nn.Linear(2, 1), sparse=[], delta=0.5, sigma2=1.0)

    def mean(x):
        with scope(prefix="a"):
            first = net(x)
        with scope(prefix="b"):
            return first + net(x)

    run = make_pyro_mcmc(make_kernel(make_model(mean), 0.01, adaptation=None))
    run.run(X, Y)
    draws = run.get_samples()
    assert {"a/weight", "b/weight"} < draws.keys()
    assert not torch.equal(draws["a/weight"], draws["b/weight"])
    loc = sum(
        torch.einsum("nd,sod->sn", X, draws[f"{n}/weight"]) + draws[f"{n}/bias"] for n in "ab"
    )
    found = PosteriorPredictive(make_model(mean), run)(X).mean
    torch.testing.assert_close(found, loc.mean(0))


@pytest.mark.parametrize("form", [twice, at_once])
def test_every_run_samples_anew(form):
    model = form(make_net())
    first, second = model(X, Y), model(X, Y)
    traces = [pyro.poutine.trace(model).get_trace(X) for _ in range(2)]
    weights = [trace.nodes["0.weight"]["value"] for trace in traces]
    assert first is Y and second is Y
    assert not torch.equal(*weights)


def test_nuts_does_so_too():
    model = twice(make_net(sparse=[]))
    MCMC(NUTS(model, max_tree_depth=1), 2, 1, disable_progbar=True).run(X, Y)


def test_two_nets_without_names_are_told_to_have_them():
    f, g = make_net(), make_net()
    with pytest.raises(ModelError, match=r"site 'sigma2' is in the model before.*name="):
        make_pyro_mcmc(make_kernel(make_model(lambda x: f(x) + g(x)))).run(X, Y)
    named = make_net(name="other")
    make_pyro_mcmc(make_kernel(make_model(lambda x: f(x) + named(x) + f(-x)))).run(X, Y)


def test_a_site_of_the_models_own_with_a_networks_name_is_refused():
    net = bayesianize(nn.Linear(2, 1), sparse=[], delta=0.5, sigma2=1.0)

    def model(x, y=None):
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(net(x)[:, 0] + bias, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"site 'bias' is in the model before Linear.*name="):
        make_pyro_mcmc(make_kernel(model)).run(X, Y)
