# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Effective sample sizes and R-hat of ``aeb.MCMC``: Pyro's numbers, in memory linear in draws."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import diagnostics, print_summary
from pyro.ops import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_aeb as aeb


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().size() for x in tree_leaves(made) if hasattr(x, "numel")]
        self.bytes = max(self.bytes, *sizes, 0)
        return made


def model():
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    pyro.sample("z", dist.Normal(0.0, 1.0))


def run(draws, chains=2):
    kernel = aeb.AEBKernel(model, aeb.SGLD(0.1), seed=1)
    mcmc = aeb.MCMC(
        kernel, draws, 5, num_chains=chains, chain_method="vectorized", disable_progbar=True
    )
    mcmc.run()
    return mcmc


@pytest.fixture(scope="module")
def finished():
    return run(61)


@pytest.mark.parametrize("block", [1, 500, 2**20])
def test_diagnostics_are_those_of_pyro(finished, block, monkeypatch):
    monkeypatch.setattr("pyro_aeb.mcmc.results.BLOCK", block)
    expected = diagnostics(finished.get_samples(group_by_chain=True))
    found = finished.diagnostics()
    for site, values in expected.items():
        for name, value in values.items():
            assert value.isfinite().all()
            torch.testing.assert_close(found[site][name], value)


def test_the_summary_is_that_of_pyro(finished, capsys):
    print_summary(finished.get_samples(group_by_chain=True), prob=0.8)
    expected = capsys.readouterr().out
    finished.summary(prob=0.8)
    assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize("method", ["diagnostics", "summary"])
def test_memory_is_linear_in_draws(method, monkeypatch):
    """Pyro's cumulative minimum would make a table of 300 x 300 for each of 6 weights."""
    draws = 600
    mcmc = run(draws, chains=1)
    with Largest() as largest:
        getattr(mcmc, method)()
    assert 4 * draws * 6 <= largest.bytes <= 6 * 4 * draws * 6


def test_pyro_is_left_as_it_was(finished):
    names = "_cummin", "effective_sample_size", "split_gelman_rubin"
    own = [getattr(stats, name) for name in names]
    for mcmc in (finished, run(1)):
        mcmc.diagnostics()
        mcmc.summary()
    assert [getattr(stats, name) for name in names] == own


@pytest.mark.parametrize("chains", [1, 2])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_few_draws_have_no_statistics(draws, chains, capsys):
    mcmc = run(draws, chains)
    found = mcmc.diagnostics()
    for site, shape in {"w": (3, 2), "z": ()}.items():
        for name in ("n_eff", "r_hat"):
            assert found[site][name].shape == shape and found[site][name].isnan().all()
    assert found["sample_stats"].keys() == {f"chain {i}" for i in range(chains)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mcmc.summary()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (z,) = [row for row in rows if row[:1] == ["z"]]
    assert z[1] == f"{float(mcmc.get_samples()['z'].mean()):.2f}" and z[-2:] == ["nan", "nan"]
    assert (z[2] == "nan") == (draws * chains == 1)
