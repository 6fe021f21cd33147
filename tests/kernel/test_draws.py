# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The contents of a draw: all sites of a small model, small sites and figures of a large one."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import dense_regression, linear_data, sparse_layers, sparse_regression
from pyro.infer import MCMC

import pyro_aeb as aeb
from pyro_aeb import SSGL, ModelError, NonFiniteError, SaveSizeWarning
from pyro_aeb.kernel.draws import LARGE_DRAW, SMALL_SITE, Moments, names_to_save
from pyro_aeb.model.inspection import inspect_model

X, Y = linear_data()


def inspect(model=sparse_regression, adapt=True):
    return inspect_model(model, (X, Y), {}, adapt=adapt)


def test_a_draw_holds_all_sites_and_summaries_unless_told_otherwise():
    found = inspect(sparse_layers)
    everything = {"sigma2", "delta0", "delta1", "w0", "w1", "w0_rho", "w1_rho"}
    assert set(names_to_save(found, None)) == everything
    assert names_to_save(found, ["w1", "delta0"]) == ("w1", "delta0")
    assert names_to_save(found, ["w0_rho"]) == ("w0_rho",)
    assert names_to_save(found, []) == ()


def test_no_summary_without_adaptation():
    assert set(names_to_save(inspect(adapt=False), None)) == {"sigma2", "delta", "beta"}


@pytest.mark.parametrize("name", ["gamma", "y", "features", "sigma2_rho"])
def test_saving_what_is_no_site_is_an_error_that_lists_the_sites(name):
    with pytest.raises(ModelError) as info:
        names_to_save(inspect(), ["beta", name])
    message = str(info.value)
    assert f"save names ['{name}']" in message and "no latent sites or summaries" in message
    assert "['beta', 'beta_rho', 'delta', 'sigma2']" in message


WIDTH = 2**19 + 1
"""Two tensors of this many float32, weights and their inclusion probabilities, exceed 4 MiB."""


def wide_model(X, y):
    """A large SSGL site, a small one at the limit, and one above it."""
    delta = pyro.sample("delta", dist.Beta(2.0, 2.0))
    w = pyro.sample("w", SSGL(0.1, 10.0, delta).expand([WIDTH]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([SMALL_SITE]).to_event(1))
    pyro.sample("c", dist.Normal(0.0, 1.0).expand([SMALL_SITE + 1]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X[:, 0] * w[0] + b[0], 1.0), obs=y)


def test_a_large_draw_keeps_learned_and_small_sites_with_a_warning_in_bytes():
    found = inspect(wide_model)
    total = 4 * (2 * WIDTH + 2 * SMALL_SITE + 1 + 1)
    assert total > LARGE_DRAW
    with pytest.warns(SaveSizeWarning) as record:
        assert set(names_to_save(found, None)) == {"delta", "b"}
    message = str(record[0].message)
    assert f"{total:,} bytes a draw" in message and f"1000 draws {1000 * total:,}" in message
    assert f"left out of the draws: w {4 * WIDTH:,}, w_rho {4 * WIDTH:,}, c 4,100" in message
    assert "save=[...]" in message and "PosteriorPredictive" in message
    assert "pyro.infer.Predictive would draw them from the prior" in message


def middling_model(X, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2**18 + 1]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X[:, 0] * w[0], 1.0), obs=y)


def test_a_draw_that_is_merely_big_is_kept_with_a_warning_in_bytes():
    size = 4 * (2**18 + 1)
    with pytest.warns(SaveSizeWarning) as record:
        assert names_to_save(inspect(middling_model), None) == ("w",)
    message = str(record[0].message)
    assert f"{size:,} bytes a draw" in message and f"w {size:,}" in message
    assert "left out" not in message and "save=[...]" in message


def test_no_warning_of_what_was_asked_for_or_is_small():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names_to_save(inspect(wide_model), ["w"]) == ("w",)
        names_to_save(inspect(dense_regression), None)


def run_mcmc(model=sparse_layers, draws=5, **options):
    pyro.set_rng_seed(0)
    adaptation = aeb.StochasticApproximation(0.1)
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-4), adaptation, **options)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=2, disable_progbar=True)
    mcmc.run(X, Y)
    return mcmc, kernel


def test_norms_and_moments_stand_for_what_is_left_out():
    whole, _ = run_mcmc()
    part, kernel = run_mcmc(save=["w1", "sigma2"])
    assert set(part.get_samples()) == {"w1", "sigma2"}
    assert torch.equal(part.get_samples()["w1"], whole.get_samples()["w1"])  # the same chain
    weights = whole.get_samples()["w0"]
    kept = kernel.diagnostics()
    norms = weights.flatten(1).norm(dim=1)
    torch.testing.assert_close(kept["sample_stats"]["w0_norm"], norms)
    torch.testing.assert_close(kept["moments"]["mean"]["w0"], weights.mean(0))
    torch.testing.assert_close(kept["moments"]["sd"]["w0"], weights.std(0))
    assert "w1" not in kept["moments"]["mean"] and "w1_norm" not in kept["sample_stats"]
    rho = aeb.to_arviz(whole).adaptation["w0_rho"].values[0]
    torch.testing.assert_close(kept["moments"]["mean"]["w0_rho"], torch.tensor(rho).mean(0))


def test_arviz_gets_the_norms_and_the_moments():
    mcmc, kernel = run_mcmc(save=["w1", "sigma2"])
    idata = aeb.to_arviz(mcmc)
    assert idata.sample_stats["w0_norm"].dims == ("chain", "draw")
    expected = kernel.diagnostics()["moments"]["sd"]["w0"]
    found = idata.moments["w0_sd"]
    assert found.dims[0] == "chain" and "draw" not in found.dims
    assert torch.equal(torch.tensor(found.values[0]), expected)


def test_nothing_saved_still_runs():
    mcmc, kernel = run_mcmc(save=[])
    assert mcmc.get_samples() == {}
    assert kernel.diagnostics()["moments"]["mean"].keys() >= {"w0", "w1", "delta0", "w0_rho"}


def scalar_site():
    pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_the_norm_of_a_number_is_its_size(method):
    def run(**options):
        kernel = aeb.AEBKernel(scalar_site, aeb.SGLD(1e-2), seed=0, **options)
        mcmc = aeb.MCMC(kernel, 4, 0, num_chains=2, chain_method=method, disable_progbar=True)
        mcmc.run()
        return mcmc

    draws = run().get_samples(group_by_chain=True)
    stats = aeb.to_arviz(run(save=[])).sample_stats
    torch.testing.assert_close(torch.tensor(stats["m_norm"].values), draws["m"].abs())
    torch.testing.assert_close(torch.tensor(stats["w_norm"].values), draws["w"].norm(dim=-1))


def exploding_step_size(k):
    return 1e-5 if k < 6 else 1e38


def test_a_divergence_is_seen_at_its_own_draw_whatever_is_saved():
    kernel = aeb.AEBKernel(
        sparse_layers, aeb.SGLD(exploding_step_size), aeb.StochasticApproximation(0.1), save=[]
    )
    with pytest.raises(NonFiniteError, match="step 6: site 'w0' is not finite"):
        MCMC(kernel, num_samples=6, warmup_steps=0, disable_progbar=True).run(X, Y)


def test_running_moments_are_those_of_all_draws():
    torch.manual_seed(0)
    draws = 1e3 + torch.randn(50, 3, 2, dtype=torch.float64)
    moments = Moments()
    for draw in draws:
        moments.add({"w": draw})
    torch.testing.assert_close(moments.mean()["w"], draws.mean(0))
    torch.testing.assert_close(moments.sd()["w"], draws.std(0))


def test_the_moments_of_one_draw():
    moments = Moments()
    moments.add({"w": torch.tensor([2.0])})
    assert moments.mean()["w"] == 2.0 and moments.sd()["w"] == 0.0


LARGE_RUN = """
import resource, sys, warnings
import pyro, pyro.distributions as dist, torch
from pyro.infer import MCMC
import pyro_aeb as aeb

SIZE, DRAWS = 2**19, int(sys.argv[1])
y = torch.zeros(10)

def model():
    delta = pyro.sample("delta", dist.Beta(2.0, 2.0))
    w = pyro.sample("w", aeb.SSGL(0.1, 10.0, delta).expand([SIZE]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w[:10], 1.0), obs=y)

peaks = []
def note(*_):
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in KiB on Linux

warnings.simplefilter("ignore")
kernel = aeb.AEBKernel(model, aeb.SGHMC(1e-4), aeb.StochasticApproximation(0.1))
MCMC(kernel, DRAWS, 0, hook_fn=note, disable_progbar=True).run()
print(peaks[10], peaks[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory as Linux counts it")
def test_a_model_whose_draws_would_not_fit_runs_in_bounded_memory():
    """
    A draw of weights and inclusion probabilities takes 4 MiB, 50 of them 200 MiB. Large tensors
    get pages of their own here, so that what is counted is what is held, and not the holes that the
    C library's allocator leaves between.
    """
    draws, draw = 50, 4 * 2**10
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", LARGE_RUN, str(draws)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    tenth, last = map(int, found.stdout.split())
    assert last - tenth < 3 * draw
