# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs with a DataLoader as the argument of ``mcmc.run``: one batch a step, epoch after epoch."""

from __future__ import annotations

import itertools
import multiprocessing
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import BATCHES, DATA, Once, X, Y, collate_batches, first_batches, shuffling_loader
from models import N, P, linear_data, loader_regression, sparse_regression
from pyro_runs import (
    assert_same_draws,
    make_kernel,
    make_parallel_mcmc,
    make_pyro_mcmc,
    make_sequential_mcmc,
)
from refusals import raises_with
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from pyro_aeb import ModelError, NonFiniteError
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior


def draws_from(loader, **kwargs):
    run = make_pyro_mcmc(make_kernel(loader_regression))
    run.run(loader, **kwargs)
    return run.get_samples()


# The gradient


def test_a_short_last_batch_is_scaled_by_its_own_size():
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
        batch = Batch(Arguments((x[rows], y[rows], size), {}), plates)
        return posterior.likelihood.evaluate(position, latents, batch).gradient

    orders = list(itertools.permutations(range(size)))
    (full,) = {gradient(range(size))}
    for rows in (slice(0, 3), slice(3, 5)):
        mean = torch.stack([gradient(order[rows]) for order in orders]).mean(0)
        torch.testing.assert_close(mean, full, rtol=1e-12, atol=1e-12)


def test_one_batch_of_all_data_is_the_same_chain_as_tensors():
    loader = DataLoader(DATA, batch_size=N)
    by_loader, by_tensors = (
        make_pyro_mcmc(make_kernel(loader_regression)),
        make_pyro_mcmc(make_kernel(sparse_regression)),
    )
    by_loader.run(loader)
    by_tensors.run(X, Y)
    assert_same_draws(by_loader.get_samples(), by_tensors.get_samples())


def test_every_step_gets_the_next_batch():
    seen = []

    def model(x, y):
        seen.append(tuple(x[:, 0].tolist()))
        loader_regression(x, y)

    make_pyro_mcmc(make_kernel(model, steps_per_draw=1), draws=6, warmup=2).run(
        DataLoader(DATA, batch_size=8)
    )
    column = X[:, 0].tolist()
    batches = [tuple(column[i : i + 8]) for i in (0, 8, 16)]
    looks = len(seen) - 8  # the looks at the model and the try of the start, all on the first batch
    assert looks > 0 and set(seen[:looks]) == {batches[0]}
    assert seen[looks:] == (batches * 3)[:8]


def test_a_short_last_batch_without_shuffling_warns():
    with pytest.warns(UserWarning, match="last 2 data.*scaled by N/2.*shuffle=True, or drop_last"):
        draws_from(DataLoader(DATA, batch_size=6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws_from(DataLoader(DATA, batch_size=5))
        draws_from(DataLoader(DATA, batch_size=6, shuffle=True))
        draws_from(DataLoader(DATA, batch_size=6, drop_last=True))
        draws_from(DataLoader(DATA, batch_size=N + 1))


# Loaders of all kinds, beside ordinary ones that give the same batches


def test_an_endless_loader_runs():
    endless = DataLoader(Once(itertools.cycle(BATCHES)), batch_size=None)
    assert_same_draws(draws_from(endless), draws_from(DataLoader(DATA, batch_size=5)))


def random_order() -> SubsetRandomSampler:
    """The first 12 data, in the same random orders for whoever asks."""
    return SubsetRandomSampler(range(12), torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "make, ordinary, size, another",
    [
        (
            lambda: DataLoader(BATCHES, batch_size=None),
            lambda: DataLoader(DATA, batch_size=5),
            N,
            2 * N,
        ),
        (
            lambda: DataLoader(BATCHES, batch_size=2, collate_fn=collate_batches),
            lambda: DataLoader(DATA, batch_size=10),
            N,
            2 * N,
        ),
        (
            lambda: DataLoader(DATA, batch_sampler=BatchSampler(random_order(), 5, drop_last=True)),
            lambda: DataLoader(
                Subset(DATA, range(12)), sampler=random_order(), batch_size=5, drop_last=True
            ),
            12,
            N,
        ),
    ],
    ids=["items are batches", "items are joined", "batch sampler of a subset"],
)
def test_a_loader_of_unknown_size_takes_the_size_of_the_models_plate(make, ordinary, size, another):
    found = draws_from(make(), size=size)
    assert_same_draws(found, draws_from(ordinary(), size=size))
    # The batches are the same ones, and count for more or less.
    assert not torch.equal(found["beta"], draws_from(make(), size=another)["beta"])


def test_a_subset_has_its_own_size():
    part = DataLoader(Subset(DATA, range(12)), batch_size=5, shuffle=True)
    copied = DataLoader(TensorDataset(X[:12], Y[:12]), batch_size=5, shuffle=True)
    assert_same_draws(draws_from(part, size=12), draws_from(copied, size=12))
    with raises_with("'data' of size 20", "12 data"):
        draws_from(part, size=N)


# Seeds


def draws_after_seed(loader, global_seed, make=make_pyro_mcmc, **options):
    pyro.set_rng_seed(global_seed)
    run = make(make_kernel(loader_regression, **options))
    run.run(loader)
    return run.get_samples(group_by_chain=True)


def test_a_seed_fixes_the_order_of_the_data():
    assert_same_draws(
        draws_after_seed(shuffling_loader(), 1), draws_after_seed(shuffling_loader(), 2)
    )


def test_without_a_seed_the_global_seed_fixes_the_order():
    first, second = (
        draws_after_seed(shuffling_loader(), 1, seed=None),
        draws_after_seed(shuffling_loader(), 1, seed=None),
    )
    assert_same_draws(first, second)
    other = draws_after_seed(shuffling_loader(), 2, seed=None)
    assert not torch.equal(first["beta"], other["beta"])


def test_every_chain_has_an_order_of_its_own():
    by_chain = draws_after_seed(shuffling_loader(), 0, make=make_sequential_mcmc)
    assert not torch.equal(by_chain["beta"][0], by_chain["beta"][1])


def test_spawned_chains_equal_sequential_ones():
    assert_same_draws(
        draws_after_seed(shuffling_loader(), 0, make=make_parallel_mcmc),
        draws_after_seed(shuffling_loader(), 0, make=make_sequential_mcmc),
    )


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
    first, second = (first_batches(loader, 5, seed=3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.args[0], b.args[0])
    assert not torch.equal(first[0].args[0], first_batches(loader, 1, seed=4)[0].args[0])
    run = make_pyro_mcmc(make_kernel(image_model, adaptation=None))
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
    kernel = make_kernel(loader_regression, seed=3)
    step = kernel.transition.step

    class Spied(type(kernel.transition)):
        def step(self, state, gradient, numbers_, *rest):
            noise.append(numbers_.clone())
            return step(state, gradient, numbers_, *rest)

    kernel.transition = Spied(kernel.transition.step_size)
    make_pyro_mcmc(kernel).run(DataLoader(data, batch_size=4, shuffle=shuffle))
    drawn, added = torch.cat(noise).tolist(), torch.cat(data.numbers).tolist()
    assert len(drawn) >= 50 and not set(drawn) & set(added)


# Workers


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_the_run(persistent):
    loader = shuffling_loader(num_workers=2, persistent_workers=persistent)
    make_pyro_mcmc(make_kernel(loader_regression)).run(loader)
    del loader  # persistent workers are the loader's own
    assert not multiprocessing.active_children()


def test_workers_end_with_an_error():
    y = Y.clone()
    y[-1] = torch.inf
    with pytest.raises(NonFiniteError):
        make_pyro_mcmc(make_kernel(loader_regression)).run(
            DataLoader(TensorDataset(X, y), batch_size=6, num_workers=2)
        )
    assert not multiprocessing.active_children()


def test_recover_ends_the_workers_of_a_run_that_a_hook_ended():
    def raising(*_):
        raise RuntimeError("in the hook")

    kernel = make_kernel(loader_regression)
    with pytest.raises(RuntimeError, match="in the hook"):
        make_pyro_mcmc(kernel, warmup=0, hook_fn=raising).run(shuffling_loader(num_workers=1))
    assert kernel.recover()["beta"].shape == (1, P)
    assert not multiprocessing.active_children()


def failing_model(x, y):
    loader_regression(x, y)
    raise ModelError("does not work")


def test_workers_end_if_the_inspection_fails():
    with raises_with("does not work"):
        make_pyro_mcmc(make_kernel(failing_model)).run(shuffling_loader(num_workers=2))
    assert not multiprocessing.active_children()
