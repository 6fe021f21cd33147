# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``aeb.check`` and the plots say of a saved trace what they say of its run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from small_runs import X, Y, make_kernel, run_mcmc
from traces import make_trace

import pyro_aeb as aeb
from pyro_aeb.diagnostics import plot_inclusion, plot_latents, plot_sparsity
from pyro_aeb.tuning import tuner


def through_memory(kernel: aeb.AEBKernel, tmp_path: Any, **options: Any) -> tuple[aeb.MCMC, Any]:
    mcmc = run_mcmc(kernel, draws=60, warmup=10, **options)
    return mcmc, aeb.to_arviz(mcmc)


def through_a_file(kernel: aeb.AEBKernel, tmp_path: Any, **options: Any) -> tuple[aeb.MCMC, Any]:
    pytest.importorskip("zarr")
    path = tmp_path / "run.zarr"
    mcmc = run_mcmc(kernel, draws=60, warmup=10, trace=path, **options)
    return mcmc, aeb.open_trace(path)


def pruned() -> aeb.AEBKernel:
    pruning = aeb.MagnitudePruning(aeb.PruningSchedule(0.5, 0.9, 10), every=2)
    return make_kernel(pruning=pruning)  # 5 steps a draw, between two prunings


def drawn() -> aeb.AEBKernel:
    return make_kernel(adaptation=aeb.Gibbs(every=5))


@pytest.mark.parametrize("save", [through_memory, through_a_file])
@pytest.mark.parametrize("kernel", [make_kernel, pruned, drawn])
def test_the_verdict_on_a_trace_is_that_on_its_run(
    kernel: Callable[[], aeb.AEBKernel], save: Any, tmp_path: Any
) -> None:
    mcmc, trace = save(kernel(), tmp_path, thinning=2)
    verdict = aeb.check(trace, quiet=True)
    assert verdict.subject == "2 chains of 60 draws, 10 step(s) apart"
    assert repr(verdict) == repr(aeb.check(mcmc, quiet=True))


def test_a_collapse_is_seen_in_a_trace(tmp_path: Any) -> None:
    def all_out() -> None:
        delta = pyro.sample("delta", dist.Beta(1.0, 1.0))
        pyro.sample("w", aeb.SSGL(0.1, 10.0, delta, 1.0).expand([20]).to_event(1))

    with pytest.warns(aeb.CollapseWarning):
        mcmc, trace = through_memory(make_kernel(all_out, aeb.SGLD(1e-6)), tmp_path, args=())
    assert aeb.diagnostics.collapse(mcmc) == ["delta"]
    assert aeb.diagnostics.collapse(trace) == ["delta"]
    assert repr(aeb.check(trace, quiet=True)) == repr(aeb.check(mcmc, quiet=True))


def test_settings_that_were_chosen_in_warm_up(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ADAPTATION", 500), ("PILOT", 500), ("ROUNDS", 1)):
        monkeypatch.setattr(tuner, name, value)

    def model(X: Any, y: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ w, 0.5), obs=y)

    kernel = aeb.AEBKernel(model, seed=0)
    mcmc, trace = through_memory(kernel, tmp_path, args=(X, Y), chains=1)
    assert repr(aeb.check(trace, quiet=True)) == repr(aeb.check(mcmc, quiet=True))
    assert aeb.check(trace, quiet=True)["tuning"]


@pytest.mark.parametrize("save", [through_memory, through_a_file])
def test_plots_of_a_trace_are_those_of_its_run(save: Any, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    mcmc, trace = save(pruned(), tmp_path)
    for plot in (plot_latents, plot_inclusion, plot_sparsity):
        of_run, of_trace = plot(mcmc), plot(trace)
        assert len(of_run.axes) == len(of_trace.axes)
        for one, other in zip(of_run.axes, of_trace.axes, strict=True):
            assert one.get_title() == other.get_title()
            lines = [line for line in one.lines if line.get_label() != "schedule"]
            assert len(lines) == len(other.lines)
            for a, b in zip(lines, other.lines, strict=True):
                np.testing.assert_array_equal(a.get_ydata(), b.get_ydata())
    np.testing.assert_array_equal(
        aeb.diagnostics.pruning_flips(trace), aeb.diagnostics.pruning_flips(mcmc)
    )


def test_a_trace_without_the_steps_of_its_draws_is_refused() -> None:
    trace = make_trace(np.zeros((1, 4, 3), bool))
    with pytest.raises(ValueError, match=r"check\(\) reads traces that say how many steps"):
        aeb.check(trace)


@pytest.mark.parametrize("save", [through_memory, through_a_file])
def test_the_attributes_of_a_trace_say_its_steps(save: Any, tmp_path: Any) -> None:
    attributes = save(make_kernel(), tmp_path, thinning=3)[1].posterior.attrs
    assert (attributes["warmup_steps"], attributes["steps_between_draws"]) == ("50", "15")
    assert attributes["weights"] == "4" and json.loads(attributes["collapse"])["delta"]
