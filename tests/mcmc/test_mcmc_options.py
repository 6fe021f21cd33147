# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Options of Pyro's MCMC, and of the kernel under it."""

from __future__ import annotations

import json
import logging
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import P, dense_regression, sparse_regression
from pyro.infer import Predictive
from pyro.infer.mcmc.api import StreamingMCMC
from pyro_runs import (
    DATA,
    N,
    X,
    Y,
    assert_same_draws,
    make_kernel,
    make_pyro_mcmc,
    make_sequential_mcmc,
    samples_by_chain,
)

import pyro_aeb as aeb

# Pyro's options


def test_streaming():
    streaming = StreamingMCMC(make_kernel(), 6, 3, num_chains=2, disable_progbar=True)
    streaming.run(X, Y, **DATA)
    whole = make_sequential_mcmc()
    whole.run(X, Y, **DATA)
    statistics = streaming.get_statistics()
    for name, draws in samples_by_chain(whole).items():
        for chain in range(2):
            found = statistics[chain, name]
            assert found["count"] == 6
            torch.testing.assert_close(found["mean"], draws[chain].mean(0))
            torch.testing.assert_close(found["variance"], draws[chain].var(0))
    assert "divergences" in streaming.diagnostics()


def test_a_hook_sees_every_draw():
    seen = []

    def hook(kernel, params, stage, i):
        seen.append((stage, i, params["beta"].clone(), kernel.chain.step))

    run = make_pyro_mcmc(hook_fn=hook)
    run.run(X, Y, **DATA)
    assert [(stage, i) for stage, i, *_ in seen] == (
        [("Warmup", i) for i in range(3)] + [("Sample", i) for i in range(6)]
    )
    assert torch.equal(torch.stack([beta for *_, beta, _ in seen[3:]]), run.get_samples()["beta"])
    assert [step for *_, step in seen] == list(range(2, 20, 2))


def test_summary_and_diagnostics(capsys):
    run = make_pyro_mcmc(draws=20)
    run.run(X, Y, **DATA)
    run.summary()
    printed = capsys.readouterr().out
    assert "beta[2]" in printed and "sigma2" in printed
    assert "Number of divergences: 0" in printed
    found = run.diagnostics()
    assert found["beta"]["n_eff"].shape == (P,) and found["sigma2"]["r_hat"].shape == ()
    assert found["divergences"] == {"chain 0": []}


def test_predictive():
    run = make_pyro_mcmc()
    run.run(X, Y, **DATA)
    draws = run.get_samples()
    predicted = Predictive(sparse_regression, draws)(X[:4])["y"]
    assert predicted.shape == (6, 4)
    # Draws of sigma2 are those of the kernel: with little noise predictions are X beta.
    draws["sigma2"] = draws["sigma2"] * 1e-12
    predicted = Predictive(sparse_regression, draws)(X[:4])["y"]
    torch.testing.assert_close(predicted, draws["beta"] @ X[:4].T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("names", [["sigma2", "beta"], ["beta"], ["delta", "beta", "sigma2"]])
def test_save_params_in_any_order(names):
    chosen, whole = make_pyro_mcmc(save_params=names), make_pyro_mcmc()
    chosen.run(X, Y, **DATA)
    whole.run(X, Y, **DATA)
    expected = {name: draws for name, draws in samples_by_chain(whole).items() if name in names}
    assert_same_draws(samples_by_chain(chosen), expected)


def test_save_params_that_name_no_site():
    run = make_pyro_mcmc(save_params=["beta", "gamma"])
    with pytest.raises(aeb.ModelError, match=r"\['gamma'\].*there are .*'beta'"):
        run.run(X, Y, **DATA)


def test_initial_params_are_unconstrained_and_respected():
    first = {
        "beta": torch.tensor([1.0, 2.0, 3.0]),
        "sigma2": torch.tensor(2.0),
        "delta": torch.tensor(-1.0),
    }
    kernel = make_kernel(step_size=1e-14, adaptation=aeb.StochasticApproximation(0.0))
    run = make_pyro_mcmc(kernel, initial_params=first)
    for _ in range(2):  # a second run starts there too
        run.run(X, Y, **DATA)
        draws = run.get_samples()
        torch.testing.assert_close(draws["beta"], first["beta"].expand(6, P))
        torch.testing.assert_close(draws["sigma2"], torch.tensor(2.0).exp().expand(6))
        torch.testing.assert_close(draws["delta"], torch.tensor(-1.0).sigmoid().expand(6))


def test_initial_params_of_every_chain_and_some_sites():
    def model(y):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        pyro.sample("free", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(weights @ torch.arange(3.0), scale), obs=y)

    first = {"scale": torch.tensor([1.0, -1.0]), "weights": torch.zeros(2, 2)}
    run = make_sequential_mcmc(
        make_kernel(model, step_size=1e-14, adaptation=None), initial_params=first, draws=2
    )
    run.run(Y)
    draws = samples_by_chain(run)
    torch.testing.assert_close(draws["scale"], first["scale"].exp()[:, None].expand(2, 2))
    torch.testing.assert_close(draws["weights"], torch.full([2, 2, 3], 1 / 3))
    assert draws["free"][0, 0] != draws["free"][1, 0]


def test_the_progress_bar_has_the_kernels_figures(monkeypatch, capsys):
    for variable in ("CI", "PYTEST_XDIST_WORKER"):  # Pyro shows no bar where they are set
        monkeypatch.delenv(variable, raising=False)
    run = make_pyro_mcmc(disable_progbar=False)
    run.run(X, Y, **DATA)
    bar = capsys.readouterr().err
    assert "Warmup" in bar and "Sample" in bar and "9/9" in bar
    for figure in ("potential=", "sparsity=", "sigma=", "steps/s="):
        assert figure in bar


def test_figures_are_logged_as_json():
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    run = make_pyro_mcmc(hook_fn=lambda *_: logging.getLogger("pyro.infer.mcmc").addHandler(keep))
    keep = Keep()
    run.run(X, Y, **DATA)
    logging.getLogger("pyro.infer.mcmc").removeHandler(keep)
    figures = [json.loads(re.sub(r"^\[.*?\]\s*", "", message)) for message in records]
    assert len(figures) >= 8
    assert all(f.keys() == {"potential", "sparsity", "sigma", "steps/s"} for f in figures)


@pytest.mark.parametrize("disable_validation", [True, False, None])
def test_validation_on_or_off(disable_validation):
    on, default = make_pyro_mcmc(disable_validation=disable_validation), make_pyro_mcmc()
    for run in (on, default):
        run.run(X, Y, **DATA)
    assert_same_draws(samples_by_chain(on), samples_by_chain(default))


def test_validation_has_its_say():
    run = make_pyro_mcmc(make_kernel(dense_regression, adaptation=None), disable_validation=False)
    with pytest.raises(ValueError, match="(?s)site .?y"):
        run.run(X, Y.reshape(-1, 1))


# The kernel's options


def test_steps_per_draw_thins():
    every, third = (
        make_pyro_mcmc(make_kernel(steps_per_draw=k), d, w) for k, d, w in ((1, 12, 3), (3, 4, 1))
    )
    for run in (every, third):
        run.run(X, Y, **DATA)
    assert torch.equal(every.get_samples()["beta"][2::3], third.get_samples()["beta"])


def test_latents_freeze_after_warm_up():
    run = make_pyro_mcmc(make_kernel(freeze_after_warmup=True))
    run.run(X, Y, **DATA)
    draws = run.get_samples()
    assert len(draws["sigma2"].unique()) == len(draws["delta"].unique()) == 1
    assert len(draws["beta"].unique(dim=0)) == 6
    assert draws["delta"][0] != 0.5  # its first value: it has moved in warm-up


@pytest.mark.parametrize(
    "save, sites, summaries",
    [
        (None, {"beta", "sigma2", "delta"}, {"beta_rho"}),
        (["beta"], {"beta"}, set()),
        (["sigma2", "beta_rho"], {"sigma2"}, {"beta_rho"}),
        (["beta_rho"], set(), {"beta_rho"}),
        ([], set(), set()),
    ],
    ids=["by default", "weights", "sigma2 and rho", "rho", "nothing"],
)
def test_what_a_draw_holds(save, sites, summaries):
    run, whole = make_pyro_mcmc(make_kernel(save=save)), make_pyro_mcmc()
    for each in (run, whole):
        each.run(X, Y, **DATA)
    assert_same_draws(run.get_samples(), {name: whole.get_samples()[name] for name in sites})
    found = run._diagnostics[0]
    expected = whole._diagnostics[0]["adaptation"]
    assert_same_draws(found["adaptation"], {name: expected[name] for name in summaries})
    norms = {"beta_norm"} - {f"{name}_norm" for name in sites}  # they stand for what is left out
    assert found["sample_stats"].keys() == whole._diagnostics[0]["sample_stats"].keys() | norms


def test_no_warm_up():
    run = make_pyro_mcmc(warmup=0)
    run.run(X, Y, **DATA)
    assert run.get_samples()["beta"].shape == (6, P)


def test_sghmc_and_annealing():
    kernel = aeb.AEBKernel(
        sparse_regression,
        aeb.SGHMC(aeb.Cyclical(1e-4, 10), friction=0.2),
        aeb.StochasticApproximation(1.0),
        inverse_temperature=aeb.Geometric(1.0, 2.0, every=2),
        minibatches="replacement",
        seed=0,
    )
    run = make_pyro_mcmc(kernel, draws=4, warmup=2)
    run.run(X, Y, **DATA)
    stats = run._diagnostics[0]["sample_stats"]
    # steps 3 to 6
    assert stats["inverse_temperature"].tolist() == [2.0, 2.0, 4.0, 4.0]
    expected = [0.5e-4 * (1 + math.cos(math.pi * (k - 1) / 10)) for k in range(3, 7)]
    torch.testing.assert_close(stats["step_size"], torch.tensor(expected))
