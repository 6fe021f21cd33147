# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Ranks that run one chain together choose the same settings."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from models import N, linear_data
from rank_runs import run_on_ranks

import pyro_aeb as aeb
from pyro_aeb.tuning import tuner

X, Y = linear_data(dtype=torch.float64)


def regression(X, y, batch_size=None):
    beta = pyro.sample("beta", dist.Normal(X.new_zeros(X.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", N, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, 1.0), obs=y[i])


def run(rank: int) -> dict[str, torch.Tensor]:
    tuner.ADAPTATION, tuner.PILOT = 200, 100
    kernel = aeb.AEBKernel(regression, data_parallel=True, seed=7)
    run = aeb.MCMC(kernel, 5, 4, disable_progbar=True)
    run.run(X, Y, batch_size=3)
    return {"beta": run.get_samples()["beta"].clone(), "scale": kernel.chain.state.scale.clone()}


def test_ranks_choose_the_same(tmp_path):
    first, second = run_on_ranks(run, tmp_path / "ranks")
    assert isinstance(first, dict), first
    assert torch.equal(first["beta"], second["beta"])
    assert torch.equal(first["scale"], second["scale"]) and (first["scale"] != 1.0).all()
