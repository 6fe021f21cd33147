# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Networks in larger settings: two in a model, several runs of a kernel, shared loaders."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from modules import perceptron
from pyro import poutine
from pyro.infer import MCMC
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import ModelError

N = 24
X = torch.linspace(-1.0, 1.0, 4 * N).reshape(N, 4).sin()
Y = torch.arange(N) % 3


def make_bayesian(module: nn.Module, **options) -> aeb.nn.BayesianModule:
    options = {"delta": dist.Beta(2.0, 2.0), "sigma2": dist.InverseGamma(2.0, 2.0), **options}
    return aeb.nn.bayesianize(module, **options)


def make_classifier(net, size=N):
    def model(x, y=None):
        logits = net(x)
        with pyro.plate("data", size, subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def make_kernel(model, **options) -> aeb.AEBKernel:
    options = {"adaptation": aeb.StochasticApproximation(0.1), "seed": 1, **options}
    return aeb.AEBKernel(model, aeb.SGHMC(1e-3), **options)


def make_loader(batch_size=8, **options) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size, **options)


def run_mcmc(kernel, data=None, draws=3, **options) -> MCMC:
    mcmc = MCMC(kernel, draws, 1, disable_progbar=True, **options)
    mcmc.run(make_loader() if data is None else data)
    return mcmc


# Two networks in one model


def test_two_networks_have_sites_of_their_own():
    mean = make_bayesian(nn.Linear(4, 1), name="mean")
    scale = make_bayesian(nn.Linear(4, 1), name="scale")

    def model(x, y=None):
        loc, log_scale = mean(x)[:, 0], scale(x)[:, 0]
        with pyro.plate("data", N, subsample=x):
            return pyro.sample("y", dist.Normal(loc, log_scale.exp()), obs=y)

    data = DataLoader(TensorDataset(X, X.sum(1)), batch_size=8)
    mcmc = run_mcmc(make_kernel(model), data)
    assert set(mcmc.get_samples()) == {
        f"{name}.{site}"
        for name in ("mean", "scale")
        for site in ("weight", "bias", "delta", "sigma2")
    }
    assert mean.sparse_sites == ("mean.weight",) and mean.latent_sites == (
        "mean.sigma2",
        "mean.delta",
    )
    exported = aeb.nn.sparse_module(scale, mcmc)
    assert torch.equal(exported.weight, mcmc.get_samples()["scale.weight"][-1])
    assert aeb.nn.PosteriorPredictive(model, mcmc)(X).mean.shape == (N,)


# Whose weights are exported


def test_the_last_state_is_exported_for_its_own_run_only():
    net = make_bayesian(perceptron())
    kernel = make_kernel(make_classifier(net), save=[])
    first = run_mcmc(kernel)
    weights = aeb.nn.sparse_module(net, first).state_dict()
    second = run_mcmc(kernel)
    assert not torch.equal(aeb.nn.sparse_module(net, second)[0].weight, weights["0.weight"])
    with pytest.raises(ModelError, match="a later run of the kernel replaces it"):
        aeb.nn.sparse_module(net, first)


def test_a_hook_exports_during_a_second_run_of_the_same_object():
    net, seen = make_bayesian(perceptron()), []
    mcmc = MCMC(
        make_kernel(make_classifier(net), save=[]),
        2,
        0,
        disable_progbar=True,
        hook_fn=lambda *_: seen.append(aeb.nn.sparse_module(net, mcmc)[0].weight.clone()),
    )
    mcmc.run(make_loader())
    mcmc.run(make_loader())
    assert len({tuple(weight.flatten().tolist()) for weight in seen}) == 4


@pytest.mark.parametrize("draw", [1.5, "last", None])
def test_a_draw_is_an_integer(draw):
    net = make_bayesian(perceptron())
    with pytest.raises(TypeError, match="expected an integer; -1 is the last draw"):
        aeb.nn.sparse_module(net, run_mcmc(make_kernel(make_classifier(net))), draw=draw)


# One loader for several passes


class Counted(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], Y[i], i


def test_passes_over_the_training_loader_leave_the_runs_epochs_alone():
    """Persistent workers serve one iterator at a time."""
    seen: list[int] = []
    net = make_bayesian(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), sparse="0"
    )
    inner = make_classifier(net)

    def model(x, y, i):
        if torch.is_grad_enabled():  # a step
            seen.extend(i.tolist())
        return inner(x, y)

    train = DataLoader(Counted(), batch_size=4, num_workers=1, persistent_workers=True)
    predict = aeb.nn.PosteriorPredictive(model, data=(X, Y, torch.arange(N)), recalibrate=train)
    MCMC(make_kernel(model), 6, 0, disable_progbar=True, hook_fn=predict.hook).run(train)
    assert seen[-N:] == list(range(N))  # six draws of one batch of four: one epoch


@pytest.mark.parametrize("labels", [True, False])
def test_a_hook_refuses_a_sampler_that_shuffles_inside_a_batch_sampler(labels):
    data = TensorDataset(X, Y) if labels else X
    shuffled = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(range(N)), N, False))
    with pytest.raises(ValueError, match="shuffles"):
        aeb.nn.PosteriorPredictive(make_classifier(make_bayesian(perceptron())), data=shuffled)


class Turning(Dataset):
    """Inputs without labels, in reverse order at every second pass."""

    passes = 0

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.passes += i == 0
        return X[i] if self.passes % 2 else X[N - 1 - i]


def test_a_hook_notices_another_order_of_data_without_labels():
    model = make_classifier(make_bayesian(perceptron()))
    predict = aeb.nn.PosteriorPredictive(model, data=DataLoader(Turning(), batch_size=N))
    with pytest.raises(ValueError, match="another order"):
        run_mcmc(make_kernel(model), hook_fn=predict.hook)


# What prediction leaves as it was


class Counter(nn.Module):
    """Counts its calls in a buffer, and those of a part that it never calls as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.part = nn.Module()
        for module in (self, self.part):
            module.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.part.calls += 1
        return self.linear(x)


def test_buffers_of_any_kind_are_as_before():
    net = make_bayesian(Counter(), sparse="linear")
    model = make_classifier(net)
    mcmc = run_mcmc(make_kernel(model))
    steps = net.module.calls.item()
    assert steps == net.module.part.calls.item() == 4  # one of warm-up; looks do not count
    aeb.nn.PosteriorPredictive(model, mcmc)(X)
    assert net.module.calls.item() == net.module.part.calls.item() == steps


def test_one_of_several_likelihoods():
    net = make_bayesian(perceptron())

    def model(x, y=None, z=None):
        logits = net(x)
        with pyro.plate("data", N, subsample=x):
            pyro.sample("z", dist.Bernoulli(logits=logits[:, 0]), obs=z)
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    mcmc = run_mcmc(
        make_kernel(model), DataLoader(TensorDataset(X, Y, (Y > 0).float()), batch_size=8)
    )
    assert aeb.nn.PosteriorPredictive(model, mcmc, site="y")(X).shape == (N, 3)
    assert aeb.nn.PosteriorPredictive(model, mcmc, site="z")(X).shape == (N,)


def test_a_factor_is_no_likelihood_to_predict():
    net = make_bayesian(perceptron())

    def model(x, y=None):
        pyro.factor("penalty", -net.module[0].weight.square().sum())
        return make_classifier(net)(x, y)

    assert aeb.nn.PosteriorPredictive(model, run_mcmc(make_kernel(model)))(X).shape == (N, 3)


# Gradients off, compiled modules


def test_a_run_where_gradients_are_off():
    with torch.no_grad():
        mcmc = run_mcmc(make_kernel(make_classifier(make_bayesian(perceptron()))))
    assert (mcmc.get_samples()["0.weight"].std(0) > 0).all()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode.*outside"):
        run_mcmc(make_kernel(make_classifier(make_bayesian(perceptron()))))


def test_the_values_of_sites_reach_a_network_under_a_name():
    net = make_bayesian(perceptron(), name="net")
    weights = {f"net.{name}": p.detach() for name, p in net.module.named_parameters()}
    given = poutine.condition(net, data=weights)
    assert torch.equal(given(X), net.module(X))
