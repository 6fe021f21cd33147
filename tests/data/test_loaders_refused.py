# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Errors of DataLoaders that do not fit the model, and of their data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from loader_data import BATCHES, DATA, Once, X, Y, collate_unchanged, shuffling_loader
from models import N, P, loader_regression
from pyro_runs import make_kernel, make_pyro_mcmc
from refusals import raises_with
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_aeb import NonFiniteError


def run_mcmc(model, loader, *args, **kwargs):
    run = make_pyro_mcmc(make_kernel(model))
    run.run(loader, *args, **kwargs)
    return run


# Loaders


class Nothing(Dataset):
    def __len__(self):
        return 0


def test_an_empty_loader():
    with raises_with("gives no batch", "empty", "drop_last=True"):
        run_mcmc(loader_regression, DataLoader(Nothing(), batch_size=2, sampler=[]))
    with raises_with("gives no batch", "drop_last=True"):
        run_mcmc(loader_regression, DataLoader(DATA, batch_size=N + 1, drop_last=True))


def test_a_loader_that_can_be_read_once_ends_the_run_with_its_draws():
    rows = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)]  # 4 batches, 2 steps a draw
    kernel = make_kernel(loader_regression)
    with raises_with("no batch in epoch 2", "read again", "kernel.recover()"):
        make_pyro_mcmc(kernel, warmup=0).run(DataLoader(Once(rows), batch_size=None))
    assert kernel.recover()["beta"].shape == (2, P)


def test_other_positional_arguments():
    with raises_with("one of 2 positional arguments", "mcmc.run(loader, name=value)"):
        run_mcmc(loader_regression, DataLoader(DATA), Y)
    with raises_with("argument 'loader'", "mcmc.run(loader, name=value)"):
        make_pyro_mcmc(make_kernel(loader_regression)).run(loader=DataLoader(DATA))


def test_an_argument_given_twice():
    loader = DataLoader([{"x": X, "y": Y}], batch_size=None, collate_fn=collate_unchanged)
    with raises_with("both give the arguments ['y']"):
        run_mcmc(loader_regression, loader, y=Y)


def test_a_kernel_can_be_used_after_an_error():
    kernel = make_kernel(loader_regression)
    with raises_with("gives no batch"):
        make_pyro_mcmc(kernel).run(DataLoader(DATA, batch_size=N + 1, drop_last=True))
    make_pyro_mcmc(kernel).run(DataLoader(DATA, batch_size=6))


# Plates


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
    with raises_with("'y' is inside no plate", "20 data", "pyro.plate", "20, subsample=x"):
        run_mcmc(no_plate, loader)
    with raises_with("'y' is inside 'data' of size 6", "20 data", "20, subsample=x"):
        run_mcmc(plate_of_the_batch, loader)
    with raises_with("'y' is inside 'data' of size 21", "20 data"):
        run_mcmc(loader_regression, loader, size=21)
    with raises_with("'y' is inside no plate", "has 1 datum, so"):
        run_mcmc(no_plate, DataLoader(TensorDataset(X[:1], Y[:1])))


def test_a_loader_of_unknown_size_needs_a_plate():
    loader = DataLoader(BATCHES, batch_size=None)
    many = "has more data than one batch (their number is unknown), so"
    with raises_with(
        "'y' is inside no plate", many, "N/n", "N, subsample=x", "and N the number of data"
    ):
        run_mcmc(no_plate, loader)
    with raises_with("'y' is inside 'data' of size 5", many, "N/n"):
        run_mcmc(plate_of_the_batch, loader)


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
    run_mcmc(with_one_more_observation, shuffling_loader())
    with raises_with("'z' is inside no plate", "20 data"):
        run_mcmc(one_of_two_unscaled, shuffling_loader())


def test_a_plate_that_draws_its_own_indices():
    with raises_with("'data' draws its own 6 of 20", "DataLoader", "subsample=x"):
        run_mcmc(plate_that_draws, DataLoader(DATA, batch_size=6))


# Data


def nested_model(batch):
    loader_regression(batch["inputs"][0], batch["y"])


def test_a_non_finite_datum_inside_a_nested_batch_is_named():
    x = X.clone()
    x[-1, 1] = torch.nan
    rows = [{"batch": {"inputs": [x[i : i + 5]], "y": Y[i : i + 5]}} for i in range(0, N, 5)]
    kernel = make_kernel(nested_model, steps_per_draw=1)
    where = "step 4: argument 'batch'['inputs'][0] of this batch has 1 non-finite of 15 numbers"
    with raises_with(where, error=NonFiniteError):
        make_pyro_mcmc(kernel, warmup=0).run(DataLoader(rows, batch_size=None))


def test_a_non_finite_datum_is_named_with_its_step():
    x = X.clone()
    x[-1, 1] = torch.nan
    kernel = make_kernel(loader_regression, steps_per_draw=1)
    with raises_with("step 4: argument 0", "1 non-finite of 15 numbers", error=NonFiniteError):
        make_pyro_mcmc(kernel, warmup=0).run(DataLoader(TensorDataset(x, Y), batch_size=5))
    assert kernel.recover()["beta"].shape == (3, P)
