# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``aeb.check``: every warning has a run that raises it and one that does not."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.mcmc.api import StreamingMCMC
from runs import Stop, StopAt
from small_runs import X, Y, gaussian, make_data, make_kernel, regression, run_mcmc

import pyro_aeb as aeb
from pyro_aeb.diagnostics import mixing
from pyro_aeb.diagnostics.findings import Finding, Verdict

SETTLED, AGREE = "learned latents: settled", "learned latents: chains agree"
R_HAT, ESS, TEMPERATURE = "draws: R-hat", "draws: effective sample size", "temperature"


def run_and_check(kernel=None, **options) -> aeb.diagnostics.Verdict:
    return aeb.check(run_mcmc(kernel, **options), quiet=True)


@pytest.fixture(scope="module")
def good() -> aeb.MCMC:
    return run_mcmc(make_kernel(steps_per_draw=20), args=make_data(60, 20))


def test_a_good_run(good, capsys):
    verdict = aeb.check(good)
    assert verdict.ok, verdict
    assert [f.check for f in verdict] == [SETTLED, AGREE, "delta collapse", R_HAT, ESS, TEMPERATURE]
    assert {f.severity for f in verdict} == {"good"}
    printed = capsys.readouterr().out
    assert printed == f"{verdict}\n"
    assert printed.startswith("2 chains of 200 draws, 20 step(s) apart: nothing to be done")
    assert max(map(len, printed.splitlines())) <= 100
    with pytest.raises(KeyError, match="'pruning' was not checked"):
        verdict["pruning"]


# Runs with a fault


def test_too_few_steps():
    slow = make_kernel(adaptation=aeb.StochasticApproximation(1e-4))
    verdict = run_and_check(slow, draws=80, warmup=0)
    finding = verdict[SETTLED]
    assert not verdict.ok and finding in verdict.warnings
    assert "delta" in finding.found and "still drift" in finding.found
    assert "run longer" in finding.cure and "omega is 0.0001" in finding.cure
    # R-hat of draws from a changing posterior is not computed, and the note says why.
    assert verdict[R_HAT].severity == "note" and "still drift" in verdict[R_HAT].found
    assert "1 warning" in repr(verdict) or "2 warnings" in repr(verdict)


def two_ends_model(X=None, y=None):
    """Weights with delta ~ Beta(1, 1), which stay in one component if they start there."""
    delta = pyro.sample("delta", dist.Beta(1.0, 1.0))
    pyro.sample("w", aeb.SSGL(0.1, 10.0, delta).expand([20]).to_event(1))


def test_collapse_and_chains_that_learn_different_latents():
    still = make_kernel(two_ends_model, aeb.SGLD(1e-12), init_strategy=init_to_sample)
    start = {"w": torch.stack([torch.zeros(20), torch.full((20,), 5.0)])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", aeb.CollapseWarning)
        verdict = run_and_check(still, initial_params=start)
    assert verdict["delta collapse"].severity == "warning"
    assert "delta" in verdict["delta collapse"].found and "a > 1" in verdict["delta collapse"].cure
    assert verdict[AGREE].severity == "warning"
    assert "different values of delta" in verdict[AGREE].found


def test_a_delta_that_has_come_back_is_not_called_collapsed():
    kernel = make_kernel(two_ends_model, aeb.SGLD(1e-12))
    kernel.initial_params = {"w": torch.zeros(20)}
    kernel.setup(0)
    with pytest.warns(aeb.CollapseWarning):
        for _ in range(30):
            kernel.sample(kernel.initial_params)
    assert kernel.metadata()["collapsed"] == ["delta"]
    chain = kernel.chain
    half = chain.ssgl._replace(delta=torch.full_like(chain.ssgl.delta, 0.5))
    chain.latents = chain.latents._replace(ssgl=half)
    assert kernel.metadata()["collapsed"] == [] and chain.collapsed == {"delta"}


def test_few_draws_are_not_asked_to_be_independent():
    enough = mixing._effective_size({"w": np.array([11.0])}, total=1000)
    assert enough.cure.startswith("9.1 times as many draws, or as far apart (steps_per_draw")
    few = mixing._effective_size({"w": np.array([75.0])}, total=120)
    assert few.cure.startswith("1.3 times as many draws; or a larger step")


def test_chains_that_have_not_mixed():
    slow = make_kernel(gaussian, aeb.SGLD(1e-6), adaptation=None, init_strategy=init_to_sample)
    verdict = run_and_check(slow, draws=60, args=())
    assert verdict[R_HAT].severity == verdict[ESS].severity == "warning"
    assert "site 'w'" in verdict[R_HAT].found
    assert SETTLED not in {f.check for f in verdict}  # nothing is learned


def test_too_large_a_step():
    # Curvature 4: at step 0.25 the variance is 1 / (1 - 0.5) times the target's.
    verdict = run_and_check(
        make_kernel(lambda: gaussian(9), aeb.SGLD(0.25), adaptation=None), args=(), draws=80
    )
    assert verdict[TEMPERATURE].severity == "warning"
    assert (
        "too hot" in verdict[TEMPERATURE].cure and "smaller step_size" in verdict[TEMPERATURE].cure
    )
    small = run_and_check(
        make_kernel(lambda: gaussian(9), aeb.SGLD(0.01), adaptation=None), args=(), draws=80
    )
    assert small[TEMPERATURE].severity != "warning"


def test_minibatch_noise_is_heat():
    options = {"args": make_data(60, 20), "draws": 60}
    assert run_and_check(**options)[TEMPERATURE].severity != "warning"
    assert run_and_check(**options, kwargs={"batch_size": 5})[TEMPERATURE].severity == "warning"


@pytest.mark.parametrize("estimate", [0.0, 0.08])
def test_a_temperature_that_is_wrong(estimate):
    # The injected noise is reduced by an estimate, and the gradient has no noise.
    transition = aeb.SGHMC(0.001, friction=0.1, gradient_noise=estimate)
    kernel = make_kernel(lambda: gaussian(300), transition, adaptation=None)
    finding = run_and_check(kernel, args=(), draws=40)[TEMPERATURE]
    assert finding.severity == ("warning" if estimate else "good")
    assert ("too cold" in finding.cure and "gradient_noise" in finding.cure) == bool(estimate)


def test_a_chain_that_explodes_and_comes_back_is_named():
    # Weights thrown far out: their way back is hot, and the mean of the ratio has a large error.
    kernel = make_kernel(lambda: gaussian(20), aeb.SGLD(0.1), adaptation=None)
    mcmc = aeb.MCMC(
        kernel, 60, 0, num_chains=2, disable_progbar=True, chain_method="vectorized",
        initial_params={"w": torch.stack([torch.zeros(20), torch.full((20,), 1e3)])},
    )  # fmt: skip
    mcmc.run()
    finding = aeb.check(mcmc)[TEMPERATURE]
    assert finding.severity == "warning" and "1 of 2 chains exploded" in finding.found
    assert "draw 0 of chain 1" in finding.found


def test_a_transition_without_figures_is_said_to_have_none():
    class Silent(aeb.SGLD):
        def statistics(self, before, state, numbers):
            return {}

    finding = run_and_check(make_kernel(transition=Silent(1e-4)), draws=20)[TEMPERATURE]
    assert finding.severity == "note" and "does not report" in finding.found


@pytest.mark.parametrize("freeze", [True, False])
def test_pruning_that_has_not_made_up_its_mind(freeze):
    # All weights have one law: without a mask, different ones are smallest at every draw.
    pruning = aeb.MagnitudePruning(0.5, freeze=freeze, sites="w")
    kernel = make_kernel(lambda: gaussian(20), aeb.SGLD(0.01), adaptation=None, pruning=pruning)
    finding = run_and_check(kernel, draws=60, args=())["pruning"]
    assert finding.severity == ("good" if freeze else "warning")
    assert "50.0 % of the weights are zero" in finding.found
    assert ("freeze=True" in finding.cure) != freeze


def test_draws_between_prunings():
    pruning = aeb.MagnitudePruning(0.5, every=10)
    finding = run_and_check(make_kernel(pruning=pruning), draws=50)["pruning"]
    assert finding.severity == "warning" and "steps_per_draw=10" in finding.cure


# What is checked of which sites


def test_only_sampled_sites_get_r_hat(good, monkeypatch):
    seen = {}

    def record_call(function, sites, compute=mixing._by_site):
        seen[function.__name__] = set(sites)
        return compute(function, sites)

    monkeypatch.setattr(mixing, "_by_site", record_call)
    verdict = aeb.check(good, quiet=True)
    assert seen == {"r_hat": {"beta"}, "effective_size": {"beta"}}
    for finding in verdict:
        if finding.check.startswith("learned"):
            assert "R-hat" not in str(finding)


def test_frozen_latents_are_called_frozen():
    finding = run_and_check(make_kernel(adaptation=aeb.StochasticApproximation(0.0)), draws=50)[
        SETTLED
    ]
    assert finding.severity == "good" and "frozen" in finding.found


def test_few_draws_are_not_judged():
    verdict = run_and_check(draws=3, warmup=0)
    assert verdict.ok
    assert {f.severity for f in verdict if f.check != "delta collapse"} == {"note"}
    assert "3 draws, 5 step(s) apart: no warning, see the notes" in repr(verdict)
    assert verdict[R_HAT].cure == "run longer"


# Kinds of runs


@pytest.mark.parametrize("method", ["sequential", "vectorized", "parallel"])
def test_chain_methods_and_thinning(method):
    options = {"chain_method": method, "mp_context": "fork", "thinning": 3, "draws": 50}
    verdict = run_and_check(**options)
    assert verdict.subject == "2 chains of 50 draws, 15 step(s) apart"
    assert verdict[SETTLED].severity in ("good", "warning") and verdict[R_HAT].severity == "good"


def test_an_interrupted_run_and_one_put_back(tmp_path):
    path = tmp_path / "run.ckpt"
    mcmc = aeb.MCMC(
        make_kernel(), 100, 10, checkpoint=path, hook_fn=StopAt("Sample", 59), disable_progbar=True
    )
    with pytest.raises(Stop):
        mcmc.run(X, Y)
    stopped = aeb.check(mcmc, quiet=True)
    assert stopped.subject == "1 chain of 60 draws, 5 step(s) apart"
    back = aeb.MCMC.resume(path, regression, disable_progbar=True)
    assert repr(aeb.check(back, quiet=True)) == repr(stopped)
    back.run(X, Y)
    assert aeb.check(back, quiet=True).subject == "1 chain of 100 draws, 5 step(s) apart"


def test_a_run_of_pyros_mcmc_and_a_collapse_in_it():
    mcmc = MCMC(make_kernel(), 50, 10, disable_progbar=True)
    mcmc.run(X, Y)
    verdict = aeb.check(mcmc, quiet=True)
    assert verdict.subject == "1 chain of 50 draws, 5 step(s) apart"
    assert verdict["delta collapse"].severity == "good"
    still = make_kernel(two_ends_model, aeb.SGLD(1e-12))
    mcmc = MCMC(still, 20, 10, initial_params={"w": torch.zeros(20)}, disable_progbar=True)
    with pytest.warns(aeb.CollapseWarning):
        mcmc.run()
    assert aeb.diagnostics.collapse(mcmc) == ["delta"]


def test_what_is_no_run_of_ours():
    nuts = MCMC(NUTS(gaussian), 2, 1, disable_progbar=True)
    nuts.run()
    with pytest.raises(
        TypeError, match=r"check\(\) reads runs of pyro_aeb.AEBKernel, found one of"
    ):
        aeb.check(nuts)
    with pytest.raises(TypeError, match=r"check\(\) takes a pyro.infer.MCMC object"):
        aeb.check(None)
    with pytest.raises(TypeError, match=r"check\(\) needs draws, but StreamingMCMC"):
        aeb.check(StreamingMCMC(make_kernel(), 2, 1))
    with pytest.raises(RuntimeError, match="no draws: call its run"):
        aeb.check(MCMC(make_kernel(), 2, 1))


def test_a_verdict_is_a_table_in_a_notebook():
    findings = (Finding("a", "good", "x < y & z"), Finding("b", "warning", "c", "d", "<b>e</b>"))
    table = Verdict("2 chains", findings)._repr_html_()
    root = ElementTree.fromstring(table)
    assert root.find("caption").text == "2 chains: 1 warning"
    cells = [[cell.text for cell in row] for row in root.findall("tr")]
    assert cells[0] == [None, "check", "found", "what to do"]
    assert cells[1:] == [["good", "a", "x < y & z", None], ["warning", "b", "c", "<b>e</b>"]]


def test_a_run_is_a_table_in_a_notebook(good):
    root = ElementTree.fromstring(good._repr_html_())
    assert root.find("caption").text == "MCMC, 2 chains: 200 of 200 draws a chain"
    rows = dict([cell.text for cell in row] for row in root.findall("tr"))
    assert rows["chain_method"] == "vectorized" and rows["warmup_steps"] == "50"
    assert rows["steps_per_draw"] == "20" and rows["model"] == "regression"


@pytest.mark.parametrize("cells", [["aeb.check(good)"], ["verdict = aeb.check(good)", "verdict"]])
def test_ipython_shows_a_verdict_once_a_cell(good, capsys, cells):
    """At the prompt of a terminal; notebooks are tested with the tutorials."""
    shell_of = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    shell = shell_of.instance()
    try:
        shell.push({"aeb": aeb, "good": good})
        for cell in cells:
            shell.run_cell(cell, store_history=True).raise_error()
            assert capsys.readouterr().out.count("2 chains of 200 draws") == 1
    finally:
        shell_of.clear_instance()
