# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Iterables of batches in the place of a DataLoader, and samplers that are not even."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import BATCHES, DATA, X, Y
from many_chains import run_together
from models import N, linear_data, loader_regression
from pyro.infer import MCMC
from refusals import count_refusal, raises_with, run_model
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import pyro_aeb as aeb


class Batches:
    """A loader that is not torch's."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Steps:
    """A loader without a length that shuffles by torch's random numbers."""

    def __iter__(self):
        return (BATCHES[i] for i in torch.randperm(4).tolist())


class Resettable:
    """An iterator that is its own loader."""

    def __iter__(self):
        self.reset()
        return self

    def reset(self):
        self.i = 0

    def __next__(self):
        if self.i == 4:
            raise StopIteration
        self.i += 1
        return BATCHES[self.i - 1]


def generate():
    """A generator function, whose generators are read once each."""
    yield from BATCHES


ARRAYS = [(x.numpy(), y.numpy()) for x, y in BATCHES]
ITERABLES = {
    "list": BATCHES,
    "list of lists": [list(batch) for batch in BATCHES],
    "tuple": tuple(BATCHES),
    "dicts": [{"x": x, "y": y} for x, y in BATCHES],
    "arrays": ARRAYS,
    "loader": Batches(BATCHES),
    "loader of arrays": Batches(ARRAYS),
    "loader of dicts": Batches([{"y": y, "x": x} for x, y in ARRAYS]),
    "its own iterator": Resettable(),
    "generator function": generate,
    "its partial": functools.partial(generate),
}


def draws_of(data, model=loader_regression, **options):
    return run_model(model, data, draws=9, **options).get_samples()["beta"]


@pytest.fixture(scope="module")
def expected():
    return draws_of(DataLoader(BATCHES, batch_size=None))


@pytest.mark.parametrize("data", ITERABLES.values(), ids=ITERABLES)
def test_an_iterable_of_batches_is_a_loader_of_them(data, expected):
    assert torch.equal(draws_of(data), expected)


def test_the_mean_from_a_list_of_batches_is_that_of_all_data():
    """N is the size of the plate: m ~ Normal(0, 5), y ~ Normal(m, 1)."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        with pyro.plate("data", N, subsample=y):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    batches = list(Y.split(5))
    draws = run_together(model, aeb.SGLD(2e-3), 300, 20, batches, steps_per_draw=16)["m"]
    assert float(draws.mean()) == pytest.approx(float(Y.sum() / (N + 1 / 25)), abs=0.08)
    assert float(draws.std()) == pytest.approx((N + 1 / 25) ** -0.5, rel=0.4)


def test_a_list_that_the_model_itself_takes_is_its_argument():
    def model(groups):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        for i, (x, y) in enumerate(groups):
            pyro.sample(f"y{i}", dist.Normal(m + x.sum(-1), 1.0).to_event(1), obs=y)

    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), seed=0)
    mcmc = MCMC(kernel, 3, 0, disable_progbar=True)
    mcmc.run(BATCHES)
    assert kernel.chain.structure.observed == ("y0", "y1", "y2", "y3")


def test_random_numbers_of_an_iterable_follow_the_seed():
    first = draws_of(Steps())
    torch.manual_seed(5)
    assert torch.equal(draws_of(Steps()), first)
    assert not torch.equal(draws_of(Steps(), seed=1), first)


@pytest.mark.parametrize("make", [lambda: BATCHES, Steps], ids=["list", "loader that shuffles"])
def test_a_run_resumes_within_an_epoch(make, tmp_path):
    def new_mcmc(samples, **options):
        adaptation = aeb.StochasticApproximation(0.3)
        kernel = aeb.AEBKernel(
            loader_regression, aeb.SGLD(1e-3), adaptation, seed=0, steps_per_draw=3
        )
        return aeb.MCMC(kernel, samples, 0, disable_progbar=True, **options)

    whole = new_mcmc(10)
    whole.run(make())
    new_mcmc(5, checkpoint=tmp_path / "run").run(make())
    resumed = aeb.MCMC.resume(tmp_path / "run", loader_regression, disable_progbar=True)
    resumed.run(make())
    assert torch.equal(resumed.get_samples()["beta"], whole.get_samples()["beta"])


def test_chains_that_step_together_take_their_batches_each():
    def samples(**options):
        adaptation = aeb.StochasticApproximation(0.3)
        kernel = aeb.AEBKernel(loader_regression, aeb.SGLD(1e-3), adaptation, seed=0)
        mcmc = aeb.MCMC(kernel, 6, 0, disable_progbar=True, num_chains=2, **options)
        mcmc.run(Batches(BATCHES))
        return mcmc.get_samples(group_by_chain=True)["beta"]

    together, in_turn = (samples(chain_method=name) for name in ("vectorized", "sequential"))
    torch.testing.assert_close(together, in_turn)


def test_batches_of_different_sizes_are_told_of():
    x, y = linear_data()
    with pytest.warns(UserWarning, match="have 2 to 6 data.*all 20.*one size"):
        draws_of(list(zip(x.split(6), y.split(6), strict=True)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BATCHES,
        lambda: generate,
        lambda: Batches(ARRAYS),
        lambda: Batches([{"x": x, "y": y} for x, y in BATCHES]),
        lambda: [(x,) for x, _ in BATCHES],
        lambda: Batches([x.numpy() for x, _ in BATCHES]),
    ],
)
def test_predictions_for_an_iterable_are_those_for_all_data(make):
    mcmc = run_model(loader_regression, BATCHES, save=["beta", "sigma2", "delta"])
    predict = aeb.nn.PosteriorPredictive(loader_regression, mcmc)
    means = mcmc.get_samples()["beta"] @ X.T
    torch.testing.assert_close(predict(X, Y).mean, means.mean(0))
    torch.testing.assert_close(predict(make()).mean, means.mean(0))
    with raises_with("gives its batches once", "list(batches)"):
        predict(iter(BATCHES))


OPTIONS = {
    "arguments": (X, Y),
    "list": BATCHES,
    "tuple": tuple(BATCHES),
    "list of arrays": ARRAYS,
    "one batch": [(X, Y)],
    "dicts": [{"x": x, "y": y} for x, y in BATCHES],
    "generator function": generate,
    "loader of arrays": Batches(ARRAYS),
}


@pytest.mark.parametrize("data", OPTIONS.values(), ids=OPTIONS)
def test_options_take_arguments_or_batches(data):
    predict = aeb.nn.PosteriorPredictive(loader_regression, data=data)
    kernel = aeb.AEBKernel(loader_regression, aeb.SGLD(1e-3), aeb.StochasticApproximation(0.3))
    mcmc = MCMC(kernel, 3, 1, disable_progbar=True, hook_fn=predict.hook)
    mcmc.run(BATCHES)
    means = mcmc.get_samples()["beta"] @ X.T
    torch.testing.assert_close(predict().mean, means.mean(0))
    found = aeb.to_arviz(mcmc, log_likelihood=True, data=data).log_likelihood["y"].values
    sigma = mcmc.get_samples()["sigma2"].sqrt()[:, None]
    torch.testing.assert_close(torch.tensor(found)[0], dist.Normal(means, sigma).log_prob(Y))


def test_a_list_of_inputs_alone():
    """Of tensors, it is batches unless the model takes them as its arguments."""
    mcmc = run_model(loader_regression, BATCHES, save=["beta", "sigma2", "delta"])
    means = (mcmc.get_samples()["beta"] @ X.T).mean(0)
    predict = aeb.nn.PosteriorPredictive(loader_regression, mcmc, recalibrate=list(X.split(5)))
    torch.testing.assert_close(predict(X).mean, means)
    assert len(predict._recalibrate) == 4
    arguments = aeb.nn.PosteriorPredictive(loader_regression, mcmc, recalibrate=[X, Y])
    assert len(arguments._recalibrate) == 1


def test_a_list_that_may_be_either():
    def model(x, y=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample=x):
            pyro.sample("y", dist.Normal(m * x, 1.0), obs=y)

    mcmc = run_model(model, X[:, 0], Y)
    for data in ([Y, Y], (Y, Y)):
        predict = functools.partial(aeb.nn.PosteriorPredictive, model, mcmc, recalibrate=data)
        if isinstance(data, tuple):
            assert len(predict()._recalibrate) == 1
            continue
        with raises_with("a list of 2, which may be the model's arguments or batches", "(X, y)"):
            predict()
    with raises_with("a list of 1: the model fails on them as its arguments", "taken for a batch"):
        aeb.nn.PosteriorPredictive(model, mcmc, recalibrate=[(Y, Y, Y)])


# What is no iterable of batches


@pytest.mark.parametrize(
    "make", [lambda: iter(BATCHES), lambda: (b for b in BATCHES), lambda: iter(DataLoader(DATA))]
)
def test_a_generator(make):
    with raises_with("gives its batches once", "list(batches)", "DataLoader"):
        draws_of(make())


def test_a_dataset():
    with raises_with("is a TensorDataset, a dataset", "pass DataLoader(dataset, batch_size"):
        draws_of(DATA)


def test_a_list_on_which_the_model_fails_either_way():
    with raises_with("the argument is a list: the model fails on it", "first item, taken for"):
        draws_of([(X, Y, X, Y, X)])


def test_a_plate_that_is_not_of_the_batches():
    def model(x, y):
        loader_regression(x, y, size=N + 1)

    with raises_with("'y' is inside 'data' of size 21", "20 data", 'pyro.plate("data", 20'):
        draws_of(BATCHES, model=model)


def test_a_list_without_data_in_a_batch():
    with raises_with("batch", "of the list of batches has no data"):
        draws_of([*BATCHES, (X[:0], Y[:0])])


# Samplers


UNEVEN = torch.linspace(1.0, 3.0, N)


def even_samplers():
    return {
        "equal weights": DataLoader(DATA, 5, sampler=WeightedRandomSampler(torch.ones(N), N)),
        "each once": DataLoader(DATA, 5, sampler=WeightedRandomSampler(UNEVEN, N, False)),
        "a part": DataLoader(DATA, 5, sampler=list(range(0, N, 2))),
        "shuffled": DataLoader(DATA, 5, shuffle=True),
        "each twice": DataLoader(DATA, batch_sampler=[[0, 1], [1, 0]]),
    }


def uneven_samplers():
    return {
        "weights": DataLoader(DATA, 5, sampler=WeightedRandomSampler(UNEVEN, N)),
        "weights in a list": DataLoader(
            DATA, 5, sampler=WeightedRandomSampler(UNEVEN.tolist(), 10, False)
        ),
        "repeated": DataLoader(DATA, 5, sampler=[*range(N), 0, 0]),
        "batches": DataLoader(DATA, batch_sampler=[[0, 1], [1, 2]]),
    }


def open_quietly(loader):
    from pyro_aeb.data.iterables import open_arguments

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_arguments((loader,), {}, [0])


@pytest.mark.parametrize("name", even_samplers())
def test_an_even_sampler_is_not_told_of(name):
    open_quietly(even_samplers()[name])


@pytest.mark.parametrize("name", uneven_samplers())
def test_a_sampler_that_is_not_even_is_told_of(name):
    with pytest.raises(UserWarning, match="3 times|2 times.*poutine.scale") as info:
        open_quietly(uneven_samplers()[name])
    count_refusal(info.value)


def test_weights_undo_a_sampler_that_is_not_even():
    """By 1 / (N p_i) the posterior is that of the data, each once."""
    y = torch.linspace(-2.0, 2.0, 40)
    chances = torch.where(y > 0, 3.0, 1.0)
    chances = chances / chances.sum()
    sampler = WeightedRandomSampler(chances, 40, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(y, 1.0 / (40 * chances)), 20, sampler=sampler)

    def model(y, w):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        with pyro.plate("data", 40, subsample=y), pyro.poutine.scale(scale=w):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    # Draws have a standard deviation of 1 / sqrt(41) = 0.16, and two are worth about one.
    kernel = aeb.AEBKernel(model, aeb.SGLD(4e-3), steps_per_draw=5, seed=0)
    mcmc = MCMC(kernel, 300, 20, disable_progbar=True)
    with pytest.warns(UserWarning, match="3 times as often"):
        mcmc.run(loader)
    uneven = float((chances * y).sum())
    assert uneven > 0.4
    assert float(mcmc.get_samples()["m"].mean()) == pytest.approx(0.0, abs=0.1)


def test_words_of_an_array_batch():
    """What is no number stays as it is."""
    batches = [(np.array(["a"] * 5), x, y) for x, y in BATCHES]

    def model(words, x, y):
        assert isinstance(words, np.ndarray)
        loader_regression(x, y)

    draws_of(batches, model=model)
