# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs that stop at an effective sample size, or at a limit, and say which."""

from __future__ import annotations

import functools
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_runs import ADAPTATION
from runs import METHODS, Stop, StopAt, X, Y, assert_same_records, copy_records, resume_mcmc

import pyro_aeb as aeb
from pyro_aeb.mcmc import goal
from pyro_aeb.mcmc.goal import Goal, TimeLimit, smallest_size
from pyro_aeb.tuning import tuner


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(goal, "FIRST", 10)


def two_scales():
    pyro.sample("fast", dist.Normal(0.0, 0.5))
    pyro.sample("slow", dist.Normal(0.0, 1.0))


def make_run(
    model=two_scales, number=2, method="sequential", seed=7, kernel=None, **options
) -> aeb.MCMC:
    given = {"transition": aeb.transitions.BAOAB(0.3, 0.5), "steps_per_draw": 2}
    own = aeb.AEBKernel(model, adaptation=None, seed=seed, **(given if kernel is None else kernel))
    options = {"warmup_steps": 5, "num_chains": number, "chain_method": method, **options}
    return aeb.MCMC(own, mp_context="fork", **{"disable_progbar": True, **options})


def bulk(run: aeb.MCMC, site: str) -> float:
    draws = run.get_samples(group_by_chain=True)[site].numpy()
    return float(az.ess(draws, method="bulk"))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stops_when_it_has_enough(method, capsys):
    run = make_run(method=method, ess=60)
    run.run()
    assert bulk(run, "slow") >= 60
    assert run.stopped_by.startswith("ess=60 is reached: the smallest effective sample size is ")
    assert "(site 'slow') of 60, after " in run.stopped_by
    assert f"Stopped, {run.stopped_by}." in capsys.readouterr().err
    counts = run.get_samples(group_by_chain=True)["slow"].shape[:2]
    assert counts[0] == 2 and 30 <= counts[1] < 1000
    run.run()  # nothing is missing
    assert run.get_samples(group_by_chain=True)["slow"].shape[:2] == counts


def test_chosen_sites_need_it_alone():
    whole, fast = make_run(ess=60), make_run(ess=60, ess_sites=["fast"])
    whole.run()
    fast.run()
    assert bulk(fast, "fast") >= 60 and "'fast'" in fast.stopped_by
    assert len(fast.get_samples()["fast"]) < len(whole.get_samples()["fast"])


def test_draws_limit_a_run_and_a_further_one(capsys):
    run = make_run(ess=1e6, num_samples=20)
    for length in (20, 40):
        run.run()
        assert run.get_samples(group_by_chain=True)["slow"].shape[:2] == (2, length)
        assert run.stopped_by.startswith(f"the limit of {length} draws of every chain is reached")
        assert " of 1e+06, after" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_seconds_limit_a_run_that_can_go_on(method):
    run = make_run(method=method, ess=1e6, num_samples=10**6, max_seconds=1.5)
    run.run()
    assert run.stopped_by.startswith("max_seconds=1.5 have passed: the smallest")
    first = run.get_samples(group_by_chain=True)["slow"].clone()
    run.run()
    second = run.get_samples(group_by_chain=True)["slow"]
    shared = min(len(first), len(second)), first.shape[1]
    assert second.shape[1] > first.shape[1]
    assert torch.equal(second[: shared[0], : shared[1]], first[: shared[0]])


@functools.cache  # for the tests that cut the same run
def run_whole(method: str) -> tuple[dict[str, torch.Tensor], str]:
    """Return the records of a run without interruption, and what it says."""
    run = make_run(method=method, ess=100)
    run.run()
    return copy_records(run), run.stopped_by


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeLimit])
@pytest.mark.parametrize("calls", [20, 150])
def test_ctrl_c_and_a_limit_lose_nothing(method, error, calls):
    (records, said), run = run_whole(method), make_run(method=method, ess=100, max_seconds=99)

    def watch(self, between):
        left = iter(range(calls))

        def check():
            if next(left, None) is None:
                raise error

        return check

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Goal, "watch", watch)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                run.run()
            assert run.stopped_by is None
        else:
            run.run()
            assert run.stopped_by.startswith("max_seconds=99 have passed")
    run.run()
    assert run.stopped_by == said
    assert_same_records(copy_records(run), records)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_the_bars_of_a_run_leave_one_line(method, capsys):
    run = make_run(method=method, ess=60, disable_progbar=False)
    run.run()
    shown = capsys.readouterr().err
    assert shown.strip().splitlines()[-1].endswith(f"Stopped, {run.stopped_by}.")
    assert shown.count("\n") == 1
    assert ", ESS " in shown and " of 60: " in shown


def test_seconds_that_pass_in_warm_up():
    run = make_run(ess=10, warmup_steps=10**6, max_seconds=0.05)
    run.run()
    assert run.stopped_by.startswith("max_seconds=0.05 have passed in warm-up: there are no draws")
    with pytest.raises(RuntimeError, match="no draw is kept yet"):
        run.get_samples()


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize("draw", [10, 40])
def test_a_run_resumes_bit_for_bit(tmp_path, method, seed, draw):
    pyro.set_rng_seed(3)
    whole = make_run(method=method, seed=seed, ess=60)
    whole.run()
    pyro.set_rng_seed(3)
    name = "Sample [0]" if method == "sequential" else "Sample"
    stopped = make_run(
        method=method, seed=seed, ess=60, hook_fn=StopAt(name, draw), checkpoint=tmp_path / "run"
    )
    with pytest.raises(Stop):
        stopped.run()
    assert stopped.stopped_by is None
    rest = resume_mcmc(tmp_path / "run", two_scales)
    rest.run()
    assert rest.stopped_by == whole.stopped_by
    assert_same_records(copy_records(rest), copy_records(whole))


@pytest.fixture
def quick(monkeypatch):
    """Tune in a few steps, for tests of what is kept and not of what is chosen."""
    for name, value in (("ADAPTATION", 120), ("PILOT", 60), ("ROUNDS", 1)):
        monkeypatch.setattr(tuner, name, value)


@pytest.mark.filterwarnings("ignore::pyro_aeb.TuningWarning")
@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_tuned_run_resumes_bit_for_bit(quick, tmp_path, method):
    options = {"method": method, "ess": 60, "kernel": {}}
    whole = make_run(**options)
    whole.run()
    name = "Sample [1]" if method == "sequential" else "Sample"
    last = int(whole.get_samples(group_by_chain=True)["slow"].shape[1]) - 1
    stopped = make_run(**options, hook_fn=StopAt(name, last - 1), checkpoint=tmp_path / "run")
    with pytest.raises(Stop):
        stopped.run()
    rest = resume_mcmc(tmp_path / "run", two_scales)
    rest.run()
    assert rest.stopped_by == whole.stopped_by
    assert_same_records(copy_records(rest), copy_records(whole))


def test_a_site_is_warned_of_once(quick, monkeypatch, tmp_path):
    def heat(self):  # changes from round to round, as a mean over more draws does
        hot = {"slow": 2.0 + self._heat.count / 1000}
        return {**hot, "fast": 3.0} if self._heat.count > 20 else hot

    def said(run) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.run()
        texts = (str(warning.message) for warning in caught)
        return [text.split("'")[1] for text in texts if text.startswith("the kinetic temperature")]

    monkeypatch.setattr(tuner.Tuner, "_clear_heat", heat)
    options = {"number": 1, "ess": 1e6, "num_samples": 60, "kernel": {}}
    monkeypatch.setattr(Goal, "first_length", lambda self, chains, limit: 10)
    run = make_run(**options)
    assert said(run) == ["slow", "fast"] and said(run) == []
    stopped = make_run(**options, hook_fn=StopAt("Sample", 15), checkpoint=tmp_path / "run")
    with pytest.raises(Stop):
        said(stopped)
    assert said(resume_mcmc(tmp_path / "run", two_scales)) == ["fast"]


def test_a_trace_grows(tmp_path):
    run = make_run(ess=60, trace=tmp_path / "run.zarr")
    run.run()
    assert bulk(run, "slow") >= 60
    trace = aeb.open_trace(tmp_path / "run.zarr")
    assert trace.posterior.sizes["draw"] == run.get_samples(group_by_chain=True)["slow"].shape[1]


def test_learned_latents_do_not_count():
    from models import sparse_regression

    kernel = aeb.AEBKernel(sparse_regression, aeb.SGHMC(1e-3), adaptation=ADAPTATION, seed=7)
    run = aeb.MCMC(kernel, 20, 3, disable_progbar=True, ess=1e6)
    run.run(X, Y)
    assert "(site 'beta')" in run.stopped_by


@pytest.mark.parametrize("method", METHODS)
def test_sites_without_a_size_are_refused_before_the_first_draw(method):
    from models import sparse_regression

    for site in ("sigma2", "gamma"):  # learned, and unknown
        kernel = aeb.AEBKernel(sparse_regression, aeb.SGHMC(1e-3), adaptation=ADAPTATION, seed=7)
        options = {"num_chains": 2, "chain_method": method, "mp_context": "fork"}
        run = aeb.MCMC(kernel, 20, 3, disable_progbar=True, ess=10, ess_sites=[site], **options)
        said = rf"ess_sites is \('{site}',\), expected.*\['beta'\]"
        with pytest.raises(aeb.ModelError, match=said):
            run.run(X, Y)
        assert sum(group.draws for group in run._groups) == 0


def test_the_size_is_that_of_arviz():
    draws = torch.randn(3, 200, 4, 2).cumsum(1) * torch.rand(2)
    expected = az.ess(az.convert_to_dataset(draws.numpy()), method="bulk")["x"].min()
    np.testing.assert_allclose(smallest_size(draws), float(expected), rtol=1e-6)


def test_what_does_not_move_counts_only_where_chains_differ():
    still = torch.zeros(2, 200, 3)
    assert np.isnan(smallest_size(still))
    stuck = still + torch.arange(2.0)[:, None, None]  # chains that never move, apart
    assert smallest_size(stuck) < 10.0
    some = torch.cat([still, torch.randn(2, 200, 3)], dim=-1)
    assert smallest_size(some) > 100.0
    assert smallest_size(torch.randn(2, 3)) == 0.0  # too few draws
    assert Goal(10.0).smallest({"w": still}, {"roles": {}}) == (0.0, "")


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "num_samples is None, expected an integer of at least 1, or ess=400"),
        ({"ess": -1}, "ess is -1, expected a finite number > 0"),
        ({"ess": 10, "max_seconds": 0}, "max_seconds is 0, expected"),
        ({"num_samples": 3, "max_seconds": 5}, "max_seconds is 5 without ess"),
        ({"num_samples": 3, "ess_sites": ["w"]}, "ess_sites is ['w'] without ess"),
        ({"ess": 10, "chain_method": "distributed"}, "have to agree on when it ends"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ValueError) as info:
        aeb.MCMC(aeb.AEBKernel(two_scales, adaptation=None), **options)
    assert said in str(info.value)
