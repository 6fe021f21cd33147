# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""DataLoaders that do not fit the model, or have not the data they should, and what is said."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from loader_data import BATCHES, DATA, Once, X, Y, as_it_is, shuffled
from models import N, P, loader_regression
from pyro_runs import kernel, mcmc
from refusals import says
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_aeb import NonFiniteError


def run(model, loader, *args, **kwargs):
    run = mcmc(kernel(model))
    run.run(loader, *args, **kwargs)
    return run


# Loaders


class Nothing(Dataset):
    def __len__(self):
        return 0


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


def test_other_positional_arguments():
    with says("one of 2 positional arguments", "mcmc.run(loader, name=value)"):
        run(loader_regression, DataLoader(DATA), Y)
    with says("argument 'loader'", "mcmc.run(loader, name=value)"):
        mcmc(kernel(loader_regression)).run(loader=DataLoader(DATA))


def test_an_argument_given_twice():
    loader = DataLoader([{"x": X, "y": Y}], batch_size=None, collate_fn=as_it_is)
    with says("both give the arguments ['y']"):
        run(loader_regression, loader, y=Y)


def test_a_kernel_serves_again_after_an_error():
    of = kernel(loader_regression)
    with says("gives no batch"):
        mcmc(of).run(DataLoader(DATA, batch_size=N + 1, drop_last=True))
    mcmc(of).run(DataLoader(DATA, batch_size=6))


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
    with says("'y' is inside no plate", "20 data", "pyro.plate", "20, subsample=x"):
        run(no_plate, loader)
    with says("'y' is inside 'data' of size 6", "20 data", "20, subsample=x"):
        run(plate_of_the_batch, loader)
    with says("'y' is inside 'data' of size 21", "20 data"):
        run(loader_regression, loader, size=21)
    with says("'y' is inside no plate", "has 1 datum, so"):
        run(no_plate, DataLoader(TensorDataset(X[:1], Y[:1])))


def test_a_loader_of_unknown_size_needs_a_plate_all_the_same():
    loader = DataLoader(BATCHES, batch_size=None)
    many = "has more data than one batch (how many, it cannot tell), so"
    with says("'y' is inside no plate", many, "N/n", "N, subsample=x", "and N the number of data"):
        run(no_plate, loader)
    with says("'y' is inside 'data' of size 5", many, "N/n"):
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


def test_a_plate_that_draws_its_own_indices():
    with says("'data' draws its own 6 of 20", "DataLoader", "subsample=x"):
        run(plate_that_draws, DataLoader(DATA, batch_size=6))


# Data


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


def test_a_datum_that_is_not_finite_is_named_where_it_comes():
    x = X.clone()
    x[-1, 1] = torch.nan
    of = kernel(loader_regression, steps_per_draw=1)
    with says("step 4: argument 0", "1 non-finite of 15 numbers", error=NonFiniteError):
        mcmc(of, warmup=0).run(DataLoader(TensorDataset(x, Y), batch_size=5))
    assert of.recover()["beta"].shape == (3, P)
