# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Data inside dataclasses, data frames and objects, wherever the package meets them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from refusals import count_refusal, raises_with, run_model
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.data.arguments import Arguments, move_to_device, named_numbers, stack

Y = torch.linspace(-1.0, 3.0, 60)


@dataclass(frozen=True)
class Rows:
    y: torch.Tensor
    unit: str = "m"


class Own:
    def __init__(self, y):
        self.parts = {"y": [y]}
        self.calls = 0

    @property
    def y(self):
        self.calls += 1
        self.cache = self.parts["y"][0] * 2.0
        return self.parts["y"][0]


def frame(y):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"y": y.numpy()})


def column(data):
    if isinstance(data, list):
        return torch.tensor(data)
    return data.y if isinstance(data, (Rows, Own)) else torch.tensor(data["y"].values)


def table(data):
    y = column(data)
    m = pyro.sample("m", dist.Normal(0.0, 500.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def batch(y):
    m = pyro.sample("m", dist.Normal(0.0, 500.0))
    with pyro.plate("data", 60, subsample=y):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)


def loader(y):
    return DataLoader(TensorDataset(y), 20, shuffle=True)


CONTAINERS = {
    "data frame": (table, frame),
    "dataclass": (table, Rows),
    "object": (table, Own),
    "list of numbers": (table, lambda y: y.tolist()),
    "loader": (batch, loader),
}


@pytest.mark.parametrize("model, make", CONTAINERS.values(), ids=CONTAINERS)
def test_other_data_in_a_second_run_are_refused(model, make, tmp_path):
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-2), steps_per_draw=2, seed=0)
    path = tmp_path / "run.ckpt"
    mcmc = aeb.MCMC(kernel, 5, 2, disable_progbar=True, checkpoint=path)
    data = make(Y)
    mcmc.run(data)
    mcmc.run(data)
    mcmc.run(make(Y.clone()))
    assert len(mcmc.get_samples()["m"]) == 15
    with pytest.raises(ValueError, match="make another MCMC object") as info:
        mcmc.run(make(Y + 100.0))
    count_refusal(info.value)
    assert len(mcmc.get_samples()["m"]) == 15
    resumed = aeb.MCMC.resume(path, model, disable_progbar=True)
    with pytest.raises(ValueError, match="the run began with"):
        resumed.run(make(Y + 100.0))
    resumed.run(make(Y))
    mcmc.run(make(Y))
    assert torch.equal(resumed.get_samples()["m"], mcmc.get_samples()["m"])


def test_what_cannot_be_looked_into_is_said_once():
    kernel = aeb.AEBKernel(lambda data: table(Rows(Y)), aeb.SGLD(1e-2), steps_per_draw=2, seed=0)
    mcmc = aeb.MCMC(kernel, 2, 0, disable_progbar=True)
    closed = object()
    with pytest.warns(UserWarning, match="argument 0 is a object, which cannot be compared"):
        mcmc.run(closed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcmc.run(closed)


@pytest.mark.parametrize(
    "make, name",
    [
        (Rows, "data.y"),
        (frame, "data['y']"),
        (Own, "data.parts['y'][0]"),
    ],
)
def test_missing_data_inside_a_container_are_named(make, name):
    y = Y.clone()
    y[7] = torch.nan
    with raises_with(f"{name}", "has 1 non-finite of 60 numbers", "remove or impute"):
        run_model(table, make(y), adaptation=None)


def test_missing_data_inside_a_container_may_be_masked():
    y = Y.clone()
    y[::7] = torch.nan

    def model(data):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        ok = ~data.y.isnan()
        with pyro.plate("data", 60), pyro.poutine.mask(mask=ok):
            pyro.sample("y", dist.Normal(m, 1.0), obs=data.y.nan_to_num())

    run_model(model, Rows(y), adaptation=None)


def test_numbers_are_found_and_named():
    arguments = Arguments(
        (Rows(Y), {"a": [np.arange(3), "word", np.array(["x"])]}), {"own": Own(Y), "n": 3}
    )
    assert [name for name, _ in named_numbers(arguments)] == [
        "0.y",
        "1['a'][0]",
        "'own'.parts['y'][0]",
    ]


def test_tensors_inside_objects_are_moved_in_copies():
    rows, own = Rows(Y), Own(Y)
    moved = move_to_device((rows, [own]), torch.device("meta"))
    assert moved[0].y.is_meta and moved[0].unit == "m"
    assert moved[1][0].parts["y"][0].is_meta
    assert rows.y is Y and own.parts["y"][0] is Y


def test_objects_of_chains_that_step_together_are_refused():
    with pytest.raises(aeb.ModelError, match="inside a Rows.*sequential") as info:
        stack((Rows(Y),), (Rows(Y + 1.0),))
    count_refusal(info.value)


def test_batches_of_dataclasses():
    data = DataLoader([Y[i : i + 20] for i in (0, 20, 40)], batch_size=None)
    collated = DataLoader(data.dataset, batch_size=None, collate_fn=Rows)

    def model(rows):
        m = pyro.sample("m", dist.Normal(0.0, 500.0))
        with pyro.plate("data", 60, subsample=rows.y):
            pyro.sample("y", dist.Normal(m, 1.0), obs=rows.y)

    found = [run_model(m, d, adaptation=None) for m, d in ((model, collated), (batch, data))]
    first, second = (mcmc.get_samples()["m"] for mcmc in found)
    assert torch.equal(first, second)
