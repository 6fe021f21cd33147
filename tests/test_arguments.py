# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A DataLoader as the argument of ``mcmc.run``: one batch a step, epoch after epoch."""

from __future__ import annotations

import itertools
import multiprocessing
import warnings
from collections import Counter
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from bad_runs import says
from mcmc_runs import assert_same, kernel, mcmc, parallel, sequential
from models import N, P, linear_data, loader_regression, sparse_regression
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from pyro_aeb import NonFiniteError
from pyro_aeb.arguments import Batch, FixedArguments, LoaderArguments, open_arguments
from pyro_aeb.model import inspect_model
from pyro_aeb.posterior import Posterior

X, Y = linear_data()
DATA = TensorDataset(X, Y)


def batches_of(loader: DataLoader, count: int, **options) -> list:
    source = LoaderArguments(loader, {}, **{"seed": None, **options})
    return [source.next() for _ in range(count)]


# What the model is called with


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def as_it_is(batch):
    return batch


@pytest.mark.parametrize(
    "batch, args, kwargs",
    [
        ((1, 2), (1, 2), {}),
        ([1, 2], (1, 2), {}),
        (Pair(1, 2), (1, 2), {}),
        ({"x": 1, "y": 2}, (), {"x": 1, "y": 2}),
        (1, (1,), {}),
    ],
    ids=["tuple", "list", "namedtuple", "dict", "one"],
)
def test_a_batch_is_unpacked(batch, args, kwargs):
    loader = DataLoader([batch], batch_size=None, collate_fn=as_it_is)
    source = LoaderArguments(loader, {"flag": True}, seed=None)
    assert source.next() == (args, {**kwargs, "flag": True})


def test_peeking_takes_nothing():
    source = LoaderArguments(DataLoader(torch.arange(4), batch_size=2), {}, seed=None)
    first = source.peek()
    assert first is source.peek() and first is source.next()
    assert source.next().args[0].tolist() == [2, 3]


def test_epochs_follow_one_another_and_each_has_every_datum_once():
    pyro.set_rng_seed(3)
    loader = DataLoader(torch.arange(10), batch_size=4, shuffle=True)
    batches = [batch.args[0].tolist() for batch in batches_of(loader, 9)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [sum(batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each shuffled anew


def test_without_a_loader_the_arguments_stay():
    source = open_arguments((X, Y), {"batch_size": 5}, seed=None)
    assert isinstance(source, FixedArguments) and not source.from_loader
    assert source.next() is source.next() is source.peek()


def test_tensors_inside_a_batch_move_with_it():
    nested = {"x": X, "more": [Pair(X, Y), "text"]}
    loader = DataLoader([nested], batch_size=None, collate_fn=as_it_is)
    source = LoaderArguments(loader, {"w": X}, seed=None)
    source.peek()
    source.move_to(torch.device("meta"))
    kwargs = source.next().kwargs
    assert isinstance(kwargs["more"][0], Pair) and kwargs["more"][1] == "text"
    tensors = [kwargs["x"], kwargs["w"], *kwargs["more"][0]]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert source.next().kwargs["x"].device.type == "meta"  # and so does the next one


# The gradient


def test_a_short_last_batch_counts_n_times_over_its_own_size():
    """Over all orders of the data, first batches and short last ones have the full gradient."""
    torch.set_default_dtype(torch.float64)
    size = 5
    x, y = linear_data(size, P, torch.float64)
    structure = inspect_model(
        loader_regression, (x[:3], y[:3], size), {}, adapt=True, loader_sizes=frozenset({size})
    )
    posterior = Posterior(loader_regression, structure)
    position = torch.randn(P)
    latents = {"sigma2": torch.tensor(0.7), "delta": torch.tensor(0.2)}
    plates = {"features": torch.arange(P)}

    def gradient(rows):
        rows = torch.tensor(rows)
        batch = Batch((x[rows], y[rows], size), {}, plates)
        return posterior.likelihood.gradient(position, latents, batch).gradient

    orders = list(itertools.permutations(range(size)))
    (full,) = {gradient(range(size))}
    for rows in (slice(0, 3), slice(3, 5)):
        mean = torch.stack([gradient(order[rows]) for order in orders]).mean(0)
        torch.testing.assert_close(mean, full, rtol=1e-12, atol=1e-12)


def test_one_batch_of_all_data_is_the_same_chain_as_tensors():
    loader = DataLoader(DATA, batch_size=N)
    by_loader, by_tensors = mcmc(kernel(loader_regression)), mcmc(kernel(sparse_regression))
    by_loader.run(loader)
    by_tensors.run(X, Y)
    assert_same(by_loader.get_samples(), by_tensors.get_samples())


def test_every_step_gets_the_next_batch():
    seen = []

    def model(x, y):
        seen.append(tuple(x[:, 0].tolist()))
        loader_regression(x, y)

    mcmc(kernel(model, steps_per_draw=1), draws=6, warmup=2).run(DataLoader(DATA, batch_size=8))
    column = X[:, 0].tolist()
    batches = [tuple(column[i : i + 8]) for i in (0, 8, 16)]
    looks = len(seen) - 8  # the looks at the model and the try of the start, all on the first batch
    assert looks > 0 and set(seen[:looks]) == {batches[0]}
    assert seen[looks:] == (batches * 3)[:8]


# Seeds


def shuffled(**options) -> DataLoader:
    return DataLoader(DATA, batch_size=6, shuffle=True, **options)


def draws_of(loader, global_seed, make=mcmc, **options):
    pyro.set_rng_seed(global_seed)
    run = make(kernel(loader_regression, **options))
    run.run(loader)
    return run.get_samples(group_by_chain=True)


def test_a_seed_fixes_the_order_of_the_data():
    assert_same(draws_of(shuffled(), 1), draws_of(shuffled(), 2))


def test_a_seeded_loader_leaves_the_global_generator_alone():
    source = LoaderArguments(shuffled(), {}, seed=5)
    before = torch.get_rng_state()
    for _ in range(9):
        source.next()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_pyros_serves():
    first, second = draws_of(shuffled(), 1, seed=None), draws_of(shuffled(), 1, seed=None)
    assert_same(first, second)
    other = draws_of(shuffled(), 2, seed=None)
    assert not torch.equal(first["beta"], other["beta"])


def test_the_order_does_not_depend_on_the_number_of_workers():
    alone, helped = (batches_of(shuffled(num_workers=n), 5, seed=3) for n in (0, 1))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.args[0], b.args[0])


def test_chains_see_the_data_in_orders_of_their_own():
    by_chain = draws_of(shuffled(), 0, make=sequential)
    assert not torch.equal(by_chain["beta"][0], by_chain["beta"][1])


def test_spawned_chains_equal_sequential_ones():
    assert_same(draws_of(shuffled(), 0, make=parallel), draws_of(shuffled(), 0, make=sequential))


class Augmented(Dataset):
    """Images under random transforms, one by one, as torchvision's data sets apply them."""

    def __init__(self) -> None:
        v2 = pytest.importorskip("torchvision.transforms.v2")
        self.images = torch.arange(8 * 16.0).reshape(8, 1, 4, 4) / 100
        self.transform = v2.Compose([v2.RandomCrop(4, padding=1), v2.RandomHorizontalFlip()])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), i % 2


def image_model(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([16]).to_event(1))
    with pyro.plate("data", 8, subsample=x):
        pyro.sample("y", dist.Bernoulli(logits=x.flatten(1) @ w), obs=y.float())


def test_torchvisions_transforms_follow_the_seed():
    loader = DataLoader(Augmented(), batch_size=3, shuffle=True)
    first, second = (batches_of(loader, 5, seed=3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.args[0], b.args[0])
    assert not torch.equal(first[0].args[0], batches_of(loader, 1, seed=4)[0].args[0])
    run = mcmc(kernel(image_model, adaptation=None))
    run.run(loader)
    assert run.get_samples()["w"].shape == (6, 16)


class Noisy(Dataset):
    """Data with normal numbers added, as an augmentation would; the numbers are kept."""

    def __init__(self) -> None:
        self.numbers = []

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.numbers.append(torch.randn(P))
        return X[i] + self.numbers[-1], Y[i]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_seeds_data_and_noise_are_different_random_numbers(shuffle):
    noise, data = [], Noisy()
    of = kernel(loader_regression, seed=3)
    step = of.transition.step

    class Spied(type(of.transition)):
        def step(self, state, gradient, numbers_, *rest):
            noise.append(numbers_.clone())
            return step(state, gradient, numbers_, *rest)

    of.transition = Spied(of.transition.step_size)
    mcmc(of).run(DataLoader(data, batch_size=4, shuffle=shuffle))
    drawn, added = torch.cat(noise).tolist(), torch.cat(data.numbers).tolist()
    assert len(drawn) >= 50 and not set(drawn) & set(added)


# Workers


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_are_gone_after_the_run(persistent):
    loader = shuffled(num_workers=2, persistent_workers=persistent)
    mcmc(kernel(loader_regression)).run(loader)
    del loader  # persistent workers are the loader's own
    assert not multiprocessing.active_children()


def test_workers_are_gone_after_an_error():
    y = Y.clone()
    y[-1] = torch.inf
    with pytest.raises(NonFiniteError):
        mcmc(kernel(loader_regression)).run(
            DataLoader(TensorDataset(X, y), batch_size=6, num_workers=2)
        )
    assert not multiprocessing.active_children()


def test_workers_of_a_run_that_a_hook_ended_are_gone_once_it_is_recovered():
    def raising(*_):
        raise RuntimeError("in the hook")

    of = kernel(loader_regression)
    with pytest.raises(RuntimeError, match="in the hook"):
        mcmc(of, warmup=0, hook_fn=raising).run(shuffled(num_workers=1))
    assert of.recover()["beta"].shape == (1, P)
    assert not multiprocessing.active_children()


def test_workers_are_gone_after_a_look_that_fails():
    with says("does not work"):
        mcmc(kernel(failing)).run(shuffled(num_workers=2))
    assert not multiprocessing.active_children()


def failing(x, y):
    from pyro_aeb import ModelError

    loader_regression(x, y)
    raise ModelError("does not work")


# Bad input


def run(model, loader, *args, **kwargs):
    run = mcmc(kernel(model))
    run.run(loader, *args, **kwargs)
    return run


class Nothing(Dataset):
    def __len__(self):
        return 0


class Once(IterableDataset):
    """Data that can be read once."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


def test_an_empty_loader():
    with says("gives no batch", "empty", "drop_last=True"):
        run(loader_regression, DataLoader(Nothing(), batch_size=2, sampler=[]))
    with says("gives no batch", "drop_last=True"):
        run(loader_regression, DataLoader(DATA, batch_size=N + 1, drop_last=True))


def test_a_loader_that_can_be_read_once_keeps_its_draws():
    rows = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)]  # 4 batches, 2 steps a draw
    of = kernel(loader_regression)
    with says("no batch in epoch 2", "starts anew", "kernel.recover()"):
        mcmc(of, warmup=0).run(DataLoader(Once(rows), batch_size=None))
    assert of.recover()["beta"].shape == (2, P)


def test_an_endless_loader_runs():
    def rows():
        while True:
            yield X[:5], Y[:5]

    run(loader_regression, DataLoader(Once(rows()), batch_size=None))


def test_other_positional_arguments():
    with says("one of 2 positional arguments", "mcmc.run(loader, name=value)"):
        run(loader_regression, DataLoader(DATA), Y)
    with says("argument 'loader'", "mcmc.run(loader, name=value)"):
        mcmc(kernel(loader_regression)).run(loader=DataLoader(DATA))


def test_an_argument_given_twice():
    loader = DataLoader([{"x": X, "y": Y}], batch_size=None, collate_fn=as_it_is)
    with says("both give the arguments ['y']"):
        run(loader_regression, loader, y=Y)


def no_plate(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)


def plate_of_the_batch(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def plate_that_draws(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_a_batch_that_no_plate_scales():
    loader = DataLoader(DATA, batch_size=6)
    with says("'y' is inside no plate", "20 data", "pyro.plate", "20, subsample=x"):
        run(no_plate, loader)
    with says("'y' is inside 'data' of size 6", "20 data", "20, subsample=x"):
        run(plate_of_the_batch, loader)
    with says("'y' is inside 'data' of size 21", "20 data"):
        run(loader_regression, loader, size=21)


BATCHES = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)]


def joined(items):
    return tuple(torch.cat(parts) for parts in zip(*items, strict=True))


@pytest.mark.parametrize(
    "loader, size",
    [
        (DataLoader(BATCHES, batch_size=None), N),
        (DataLoader(BATCHES, batch_size=2, collate_fn=joined), N),
        (
            DataLoader(
                DATA, batch_sampler=BatchSampler(SubsetRandomSampler(range(12)), 5, drop_last=True)
            ),
            12,
        ),
    ],
    ids=["items are batches", "items are joined", "batch sampler of a subset"],
)
def test_the_number_of_data_is_the_models_where_the_loader_cannot_know_it(loader, size):
    run(loader_regression, loader, size=size)


def test_a_loader_of_unknown_size_needs_a_plate_all_the_same():
    loader = DataLoader(BATCHES, batch_size=None)
    with says("'y' is inside no plate", "N/n", "subsample=x"):
        run(no_plate, loader)
    with says("'y' is inside 'data' of size 5", "N/n"):
        run(plate_of_the_batch, loader)


def with_one_more_observation(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
    pyro.sample("sum", dist.Normal(w.sum(), 1.0), obs=torch.tensor(2.0))
    with pyro.plate("data", N, subsample=x):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def one_of_two_unscaled(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
    pyro.sample("z", dist.Normal(x @ w, 1.0).to_event(1), obs=y)
    with pyro.plate("data", N, subsample=x):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_an_observation_beside_the_data_needs_no_plate():
    run(with_one_more_observation, shuffled())
    with says("'z' is inside no plate", "20 data"):
        run(one_of_two_unscaled, shuffled())


def test_a_loader_that_does_not_shuffle_and_ends_short_is_warned_of():
    with pytest.warns(UserWarning, match="last 2 data.*scaled by N/2.*shuffle=True, or drop_last"):
        run(loader_regression, DataLoader(DATA, batch_size=6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(loader_regression, DataLoader(DATA, batch_size=5))
        run(loader_regression, DataLoader(DATA, batch_size=6, shuffle=True))
        run(loader_regression, DataLoader(DATA, batch_size=6, drop_last=True))
        run(loader_regression, DataLoader(DATA, batch_size=N + 1))


def nested_model(batch):
    loader_regression(batch["inputs"][0], batch["y"])


def test_a_datum_that_is_not_finite_inside_a_nested_batch():
    x = X.clone()
    x[-1, 1] = torch.nan
    rows = [{"batch": {"inputs": [x[i : i + 5]], "y": Y[i : i + 5]}} for i in range(0, N, 5)]
    of = kernel(nested_model, steps_per_draw=1)
    where = "step 4: argument 'batch'['inputs'][0] of this batch has 1 non-finite of 15 numbers"
    with says(where, error=NonFiniteError):
        mcmc(of, warmup=0).run(DataLoader(rows, batch_size=None))


def test_an_object_that_can_move_itself_does():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    loader = DataLoader([(packed, 1)], batch_size=None, collate_fn=as_it_is)
    source = LoaderArguments(loader, {}, seed=None)
    source.move_to(torch.device("meta"))
    found, _ = source.next().args
    assert found.data.device.type == "meta" and found.batch_sizes.device.type == "cpu"


def test_a_plate_that_draws_its_own_indices():
    with says("'data' draws its own 6 of 20", "DataLoader", "subsample=x"):
        run(plate_that_draws, DataLoader(DATA, batch_size=6))


def test_a_part_of_a_data_set_counts_as_its_own_length():
    run(loader_regression, DataLoader(Subset(DATA, range(12)), batch_size=5), size=12)


def test_a_datum_that_is_not_finite_is_named_where_it_comes():
    x = X.clone()
    x[-1, 1] = torch.nan
    of = kernel(loader_regression, steps_per_draw=1)
    with says("step 4: argument 0", "1 non-finite of 15 numbers", error=NonFiniteError):
        mcmc(of, warmup=0).run(DataLoader(TensorDataset(x, Y), batch_size=5))
    assert of.recover()["beta"].shape == (3, P)


def test_a_kernel_serves_again_after_an_error():
    of = kernel(loader_regression)
    with says("gives no batch"):
        mcmc(of).run(DataLoader(DATA, batch_size=N + 1, drop_last=True))
    mcmc(of).run(DataLoader(DATA, batch_size=6))


def test_a_loader_with_weights_counts_every_datum_as_often_as_drawn():
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * N, 12)
    source = LoaderArguments(DataLoader(DATA, batch_size=4, sampler=sampler), {}, seed=0)
    assert source.sizes == {N, 12}
    assert Counter(len(source.next().args[1]) for _ in range(6)) == {4: 6}
