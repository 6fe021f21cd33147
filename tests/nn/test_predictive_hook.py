# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior average gathered during a run, against that of a run that keeps its draws."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import DenseNetwork, sparse_classification, sparse_regression
from pyro.infer import MCMC
from pyro_runs import (
    X,
    Y,
    assert_same_draws,
    make_kernel,
    make_parallel_mcmc,
    make_pyro_mcmc,
    make_sequential_mcmc,
)
from replayed_runs import Replay
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.nn import PosteriorPredictive, bayesianize

TEST = (X[:5] + 0.1, Y[:5])


def make_loader(**options) -> DataLoader:
    return DataLoader(TensorDataset(*TEST), **{"batch_size": 2, **options})


def make_network() -> DenseNetwork:
    torch.manual_seed(3)
    return DenseNetwork().train()


def make_network_kernel(model, **options) -> aeb.AEBKernel:
    return make_kernel(model, 1e-3, adaptation=None, **options)


def assert_same_scores(found, expected) -> None:
    """Sums in another order: a few roundings of single precision."""
    assert found.draws == expected.draws
    assert found.average == pytest.approx(expected.average, rel=1e-5, abs=1e-6)
    assert found.last == pytest.approx(expected.last, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("make", [make_pyro_mcmc, make_sequential_mcmc])
@pytest.mark.parametrize("model", [sparse_regression, sparse_classification])
def test_the_hook_finds_what_keeping_all_draws_finds(model, make):
    along = PosteriorPredictive(model, data=make_loader())
    run = make(make_kernel(model), hook_fn=along.hook)
    run.run(X, Y, batch_size=5)
    kept = PosteriorPredictive(model, run)
    assert kept.evaluate(*TEST).draws == 6 * run.num_chains  # none of warm-up
    assert_same_scores(along.evaluate(), kept.evaluate(*TEST))
    for found, expected in zip(along(), kept(*TEST), strict=True):
        torch.testing.assert_close(found, expected)


def test_so_it_does_with_batch_norm_recalibrated_at_every_draw():
    net = make_network()
    along = PosteriorPredictive(net, data=TEST, recalibrate=(X, Y))
    run = make_pyro_mcmc(make_network_kernel(net), hook_fn=along.hook)
    run.run(X, Y)
    kept = PosteriorPredictive(net, run, recalibrate=(X, Y))
    assert_same_scores(along.evaluate(), kept.evaluate(*TEST))
    with pytest.raises(ModelError, match=r"'norm.running_mean'.*recalibrate="):
        PosteriorPredictive(net, run).evaluate(*TEST)


@pytest.mark.parametrize("seed", [None, 7])
def test_the_run_goes_on_as_without_the_hook(seed):
    draws, nets = [], []
    for hooked in (False, True):
        nets.append(make_network())
        predict = PosteriorPredictive(nets[-1], data=make_loader(), recalibrate=(X, Y))
        torch.manual_seed(5)
        run = make_pyro_mcmc(
            make_network_kernel(nets[-1], seed=seed), hook_fn=predict.hook if hooked else None
        )
        run.run(X, Y)
        draws.append(run.get_samples())
    assert_same_draws(*draws)
    assert_same_draws(nets[0].state_dict(), nets[1].state_dict())
    assert all(module.training for module in nets[1].modules())


def wide_regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 10_000]).to_event(2))
    with pyro.plate("data", len(x)):  # the mean is a view, which would keep all weights
        return pyro.sample("y", dist.Normal(w[0, : len(x)], 0.5), obs=y)


def test_the_hook_keeps_no_weights_and_nothing_that_grows_with_the_draws():
    predict = PosteriorPredictive(wide_regression, data=TEST)
    sizes = []

    def hook(*args):
        predict.hook(*args)
        sizes.append(len(pickle.dumps(predict)))

    options = {"adaptation": None, "save": [], "steps_per_draw": 1}
    run = make_pyro_mcmc(
        make_kernel(wide_regression, 1e-6, **options), draws=20, warmup=1, hook_fn=hook
    )
    run.run(X, Y)
    assert predict.evaluate().draws == 20
    assert max(sizes) < 10_000  # bytes; the weights are 120,000
    assert len(set(sizes[2:])) == 1  # of the first draw, average and last are one


def test_a_run_that_is_cut_short_leaves_whole_draws():
    class Interrupted(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            Interrupted.reads += 1
            if Interrupted.reads > 2 + 5 * 3 + 3:  # the trial's batch, three draws, half a draw
                raise KeyboardInterrupt
            return super().__getitem__(index)

    along = PosteriorPredictive(sparse_regression, data=DataLoader(Interrupted(*TEST), 2))
    with pytest.raises(KeyboardInterrupt):
        make_pyro_mcmc(make_kernel(), hook_fn=along.hook).run(X, Y, batch_size=5)
    run = make_pyro_mcmc(make_kernel(), draws=3)
    run.run(X, Y, batch_size=5)
    kept = PosteriorPredictive(sparse_regression, run).evaluate(*TEST)
    assert_same_scores(along.evaluate(), kept)


def test_a_new_run_starts_afresh():
    predict = PosteriorPredictive(sparse_regression, data=TEST)
    for draws in (4, 2):
        run = make_pyro_mcmc(make_kernel(), draws=draws, hook_fn=predict.hook)
        run.run(X, Y)
        assert predict.evaluate().draws == draws
    assert_same_scores(
        predict.evaluate(), PosteriorPredictive(sparse_regression, run).evaluate(*TEST)
    )


def test_a_network_trained_and_scored_by_loaders():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    net = bayesianize(module, delta=0.5, sigma2=1.0)

    def model(x, y=None):
        logits = net(x)
        with pyro.plate("data", len(X), subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    data = TensorDataset(X, Y.sign().long() + 1)
    test = DataLoader(data, 8)
    along = PosteriorPredictive(model, data=test, recalibrate=test)
    run = make_pyro_mcmc(make_kernel(model, 1e-4), hook_fn=along.hook)
    run.run(DataLoader(data, 6, shuffle=True))
    kept = PosteriorPredictive(model, run, recalibrate=test)
    assert_same_scores(along.evaluate(), kept.evaluate(test))
    probs = kept(test)
    assert probs.shape == (len(X), 3)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(X)))


# What does not fit


class Turning(Sampler):
    """One order at the first two passes (the trial, the first draw), another one afterwards."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([0, 1, 2, 3, 4] if self.passes <= 2 else [1, 0, 2, 3, 4])

    def __len__(self):
        return 5


def test_a_loader_that_shuffles_is_refused():
    with pytest.raises(ValueError, match="data= shuffles.*use shuffle=False"):
        PosteriorPredictive(sparse_regression, data=make_loader(shuffle=True))


def test_data_in_another_order_are_refused_and_the_draws_before_stay():
    predict = PosteriorPredictive(sparse_regression, data=make_loader(sampler=Turning()))
    with pytest.raises(ValueError, match="another order.*same batches at every pass"):
        make_pyro_mcmc(make_kernel(), hook_fn=predict.hook).run(X, Y)
    assert predict.evaluate().draws == 1


def test_what_does_not_fit_is_found_at_the_first_draw_of_warm_up():
    stages = []

    def hook(kernel, samples, stage, i):
        stages.append((stage, i))
        predict.hook(kernel, samples, stage, i)

    predict = PosteriorPredictive(sparse_regression, data=(X[:, :2], Y))  # a feature too few
    with pytest.raises(RuntimeError):
        make_pyro_mcmc(make_kernel(), hook_fn=hook).run(X, Y)
    assert stages == [("Warmup", 0)]


def test_before_the_first_draw_there_is_nothing_to_evaluate():
    predict = PosteriorPredictive(sparse_regression, data=TEST)
    with pytest.raises(RuntimeError, match="no draws yet"):
        predict.evaluate()
    with pytest.raises(TypeError, match="only averages for data="):
        predict.evaluate(*TEST)


def test_the_hook_needs_data_and_an_aeb_kernel():
    predict = PosteriorPredictive(sparse_regression, data=TEST)
    with pytest.raises(TypeError, match="called for a Replay, expected an AEBKernel"):
        MCMC(Replay({"mu": torch.zeros(3)}), 3, 0, hook_fn=predict.hook, disable_progbar=True).run()
    run = make_pyro_mcmc()
    run.run(X, Y)
    with pytest.raises(TypeError, match="the hook has no data"):
        PosteriorPredictive(sparse_regression, run).hook(run.kernel, {}, "Sample", 0)


def test_chains_in_processes_of_their_own_are_refused():
    predict = PosteriorPredictive(sparse_regression, data=TEST)
    with pytest.raises(RuntimeError, match="chain [01] runs in a worker process"):
        make_parallel_mcmc(make_kernel(), context="fork", hook_fn=predict.hook).run(X, Y)
