# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Several chains step together by default where the model can, and as before where it cannot."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import loader_regression, sparse_regression
from runs import X, Y, assert_same_records, copy_records, make_kernel, resume_mcmc
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.mcmc import together


def branching(X, y):
    """A model that torch.vmap cannot run, as it branches on a value."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))
    scale = 1.0 if beta[0].item() > 0.0 else 1.5
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, scale), obs=y)


@pytest.fixture(autouse=True)
def one_processor(monkeypatch):
    """Make chains that do not step together run one after the other."""
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)


def run(model=sparse_regression, data=(X, Y), seed=7, **options) -> aeb.MCMC:
    kernel = make_kernel(model, seed=seed) if model is not branching else make_dense(seed)
    mcmc = aeb.MCMC(kernel, 6, 3, num_chains=2, disable_progbar=True, **options)
    pyro.set_rng_seed(5)
    mcmc.run(*data)
    return mcmc


def make_dense(seed):
    return make_kernel(branching, seed=seed, adaptation=None)


@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize(
    ("model", "method"), [(sparse_regression, "vectorized"), (branching, "sequential")]
)
def test_the_default_is_what_the_model_can(model, method, seed):
    """The check leaves no trace: random numbers are those of a run without it."""
    found, expected = run(model, seed=seed), run(model, seed=seed, chain_method=method)
    assert found.chain_method == method
    assert_same_records(copy_records(found), copy_records(expected))


def test_first_values_are_those_given():
    params = {"beta": torch.stack([torch.zeros(X.shape[1]), torch.ones(X.shape[1])])}
    found, expected = (
        run(initial_params=params, chain_method=method) for method in (None, "vectorized")
    )
    assert found.chain_method == "vectorized"
    assert_same_records(copy_records(found), copy_records(expected))


def test_it_is_said_once(capfd):
    kernel = make_kernel()
    mcmc = aeb.MCMC(kernel, 2, 1, num_chains=2)
    mcmc.run(X, Y)
    mcmc.run(X, Y)
    assert capfd.readouterr().err.count("The 2 chains step together") == 1


def test_a_run_resumes_with_the_method_that_was_chosen(tmp_path):
    whole = run(checkpoint=tmp_path / "run")
    again = resume_mcmc(tmp_path / "run")
    assert again.chain_method == "vectorized"
    whole.run(X, Y)
    again.run(X, Y)
    assert_same_records(copy_records(again), copy_records(whole))


@pytest.mark.parametrize(
    "options",
    [{"hook_fn": lambda *_: None}, {"mp_context": "fork"}, {"chain_method": "sequential"}],
)
def test_what_speaks_for_chains_apart(options):
    assert run(**options).chain_method == "sequential"


def test_batches_of_a_loader_and_many_weights_are_not_tried(monkeypatch):
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    assert run(loader_regression, (loader,)).chain_method == "sequential"
    monkeypatch.setattr(together, "MOST_WEIGHTS", 1)
    assert run().chain_method == "sequential"


def test_the_kernel_keeps_the_chain_of_another_run():
    kernel = make_dense(7)
    first = aeb.MCMC(kernel, 2, 1, disable_progbar=True)
    first.run(X, Y)
    chain = kernel.chain
    arguments = together.Arguments((X, Y), {})
    assert not together.can_step_together(kernel, 2, arguments, None)
    assert kernel.chain is chain
