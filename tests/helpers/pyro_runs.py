# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Short runs of Pyro's MCMC."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import linear_data, sparse_regression
from pyro.infer import MCMC

import pyro_aeb as aeb

X, Y = linear_data()
N = len(X)
ADAPTATION = aeb.StochasticApproximation(aeb.Polynomial(5.0, 20.0, 0.7))
DATA = {"batch_size": 5}


def make_kernel(model=sparse_regression, step_size=1e-3, **options) -> aeb.AEBKernel:
    return aeb.AEBKernel(
        model,
        aeb.SGLD(step_size),
        **{"adaptation": ADAPTATION, "seed": 7, "steps_per_draw": 2, **options},
    )


def make_pyro_mcmc(kernel=None, draws=6, warmup=3, **options) -> MCMC:
    return MCMC(kernel or make_kernel(), draws, warmup, **{"disable_progbar": True, **options})


def make_sequential_mcmc(kernel=None, **options) -> MCMC:
    """Return a run of two sequential chains, as Pyro makes with few processors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="num_chains=2 is more than available_cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 2)
            return make_pyro_mcmc(kernel, num_chains=2, **options)


def make_parallel_mcmc(kernel=None, context="forkserver", **options) -> MCMC:
    """Return a run of two chains in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 8)
        return make_pyro_mcmc(kernel, num_chains=2, mp_context=context, **options)


def samples_by_chain(run: MCMC) -> dict[str, torch.Tensor]:
    return run.get_samples(group_by_chain=True)


def assert_same_draws(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
