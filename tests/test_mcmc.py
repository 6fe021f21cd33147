# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The kernel under Pyro's own MCMC, as its users run it."""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    DenseNetwork,
    P,
    dense_regression,
    double_regression,
    eight_schools,
    linear_data,
    sparse_layers,
    sparse_prior,
    sparse_regression,
)
from pyro.infer import MCMC, Predictive
from pyro.infer.mcmc.api import StreamingMCMC

import pyro_aeb as aeb

X, Y = linear_data()
N = len(X)
ADAPTATION = aeb.StochasticApproximation(aeb.Polynomial(5.0, 20.0, 0.7))
DATA = {"batch_size": 5}


def kernel(model=sparse_regression, step_size=1e-3, **options) -> aeb.AEBKernel:
    return aeb.AEBKernel(
        model,
        aeb.SGLD(step_size),
        **{"adaptation": ADAPTATION, "seed": 7, "steps_per_draw": 2, **options},
    )


def mcmc(of=None, draws=6, warmup=3, **options) -> MCMC:
    return MCMC(of or kernel(), draws, warmup, **{"disable_progbar": True, **options})


def sequential(of=None, **options) -> MCMC:
    """Two chains, one after the other, as Pyro makes them where there are few processors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="num_chains=2 is more than available_cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 2)
            return mcmc(of, num_chains=2, **options)


def parallel(of=None, context="spawn", **options) -> MCMC:
    """Two chains in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 8)
        return mcmc(of, num_chains=2, mp_context=context, **options)


def by_chain(run: MCMC) -> dict[str, torch.Tensor]:
    return run.get_samples(group_by_chain=True)


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# The acceptance program


def test_the_first_program_of_the_readme():
    n, p = 60, 8
    X, y = linear_data(n, p)
    X_test, _ = linear_data(5, p)

    def model(X, y=None, batch_size=None):
        n, p = X.shape
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
        delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
        with pyro.plate("features", p):
            prior = aeb.SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma2.sqrt())
            beta = pyro.sample("beta", prior)
        with pyro.plate("data", n, subsample_size=batch_size) as i:
            obs = None if y is None else y[i]
            return pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=obs)

    kernel = aeb.AEBKernel(
        model,
        aeb.SGLD(step_size=aeb.Polynomial(scale=1e-3, offset=0.0, power=1 / 3)),
        adaptation=aeb.StochasticApproximation(
            aeb.Polynomial(scale=10.0, offset=1000.0, power=0.7)
        ),
        inverse_temperature=1.0,
        steps_per_draw=3,
    )
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=5, disable_progbar=True)
    mcmc.run(X, y, batch_size=20)

    shapes = {name: tuple(draws.shape) for name, draws in mcmc.get_samples().items()}
    assert shapes == {"beta": (20, p), "delta": (20,), "sigma2": (20,)}
    assert {"beta", "delta", "sigma2", "divergences"} <= mcmc.diagnostics().keys()
    idata = aeb.to_arviz(mcmc)
    assert {"r_hat", "mean"} <= set(az.summary(idata, var_names=["sigma2", "delta"]).columns)
    assert idata.posterior["beta"].dims == ("chain", "draw", "features")
    statistics = {
        "diverging",
        "potential",
        "step_size",
        "inverse_temperature",
        "sa_weight",
        "sparsity",
    }
    assert statistics == set(idata.sample_stats.data_vars)
    assert all(idata.sample_stats[name].dims == ("chain", "draw") for name in statistics)
    assert idata.adaptation["beta_rho"].dims == ("chain", "draw", "features")
    assert Predictive(model, mcmc.get_samples())(X_test)["y"].shape == (20, 5)


# Chains


def test_one_chain():
    run = mcmc()
    run.run(X, Y, **DATA)
    draws = run.get_samples()
    assert {name: tuple(draw.shape) for name, draw in draws.items()} == {
        "beta": (6, P),
        "delta": (6,),
        "sigma2": (6,),
    }
    assert all(torch.isfinite(draw).all() for draw in draws.values())
    assert (draws["sigma2"] > 0).all() and ((draws["delta"] > 0) & (draws["delta"] < 1)).all()
    assert (draws["beta"].diff(dim=0) != 0).all()
    assert len(run._diagnostics) == 1
    assert run._diagnostics[0]["adaptation"]["beta_rho"].shape == (6, P)


def test_two_chains_where_there_are_two_processors(monkeypatch):
    monkeypatch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 2)
    with pytest.warns(UserWarning, match="Chains will be drawn sequentially"):
        run = mcmc(num_chains=2)
    run.run(X, Y, **DATA)
    assert by_chain(run)["beta"].shape == (2, 6, P)
    assert [len(d["sample_stats"]["potential"]) for d in run._diagnostics] == [6, 6]


@pytest.mark.parametrize("seed", [7, None])
def test_chains_differ(seed):
    run = sequential(kernel(seed=seed))
    run.run(X, Y, **DATA)
    first, second = by_chain(run)["beta"]
    assert (first != second).all()


def test_chain_i_uses_seed_plus_i():
    two, alone = sequential(kernel(seed=7)), mcmc(kernel(seed=8))
    two.run(X, Y, **DATA)
    alone.run(X, Y, **DATA)
    second = {name: draws[1:] for name, draws in by_chain(two).items()}
    assert_same(second, by_chain(alone))


def test_a_seed_gives_the_same_draws_whatever_the_global_state():
    runs = []
    for state in range(2):
        pyro.set_rng_seed(state)
        runs.append(mcmc())
        before = torch.get_rng_state()
        runs[-1].run(X, Y, **DATA)
        assert torch.equal(before, torch.get_rng_state())
    assert_same(by_chain(runs[0]), by_chain(runs[1]))


def test_without_a_seed_draws_follow_the_global_state():
    found = []
    for state in (0, 0, 1):
        pyro.set_rng_seed(state)
        run = mcmc(kernel(seed=None))
        run.run(X, Y, **DATA)
        found.append(run.get_samples()["beta"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_two_chains_in_processes(context):
    side_by_side, in_turn = parallel(context=context), sequential()
    for run in (side_by_side, in_turn):
        run.run(X, Y, **DATA)
    assert by_chain(side_by_side)["beta"].shape == (2, 6, P)
    assert_same(by_chain(side_by_side), by_chain(in_turn))
    for there, here in zip(side_by_side._diagnostics, in_turn._diagnostics, strict=True):
        for group in ("sample_stats", "adaptation"):
            assert_same(there[group], here[group])
        assert there["roles"] == here["roles"] and there["dims"] == here["dims"]
    posterior = aeb.to_arviz(side_by_side).posterior["beta"]
    np.testing.assert_array_equal(posterior.values, by_chain(side_by_side)["beta"].numpy())


@pytest.mark.slow
def test_chains_in_processes_differ_without_a_seed():
    run = parallel(kernel(seed=None), context="fork")
    run.run(X, Y, **DATA)
    first, second = by_chain(run)["beta"]
    assert (first != second).all()


@pytest.mark.slow
def test_a_module_and_its_first_values_in_processes():
    # The same for both chains: Pyro gives all processes those of the last one.
    first = {"first.bias": torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(2, 4)}
    of = kernel(DenseNetwork(), step_size=1e-14, steps_per_draw=1)
    run = parallel(of, initial_params=first, draws=2)
    run.run(X, Y)
    # With such a step size draws stay where they start.
    expected = first["first.bias"][:, None].expand(2, 2, 4)
    torch.testing.assert_close(by_chain(run)["first.bias"], expected)


# One run after another


def test_a_second_run_of_the_same_mcmc():
    run = mcmc(kernel(seed=None))
    run.run(X, Y, **DATA)
    first = run.get_samples()["beta"]
    run.run(X, Y + 1.0, **DATA)
    second = run.get_samples()["beta"]
    assert second.shape == first.shape and not torch.equal(first, second)
    assert len(run._diagnostics[0]["sample_stats"]["potential"]) == 6


def test_a_second_mcmc_with_the_same_kernel():
    of = kernel()
    mcmc(of).run(X, Y, **DATA)
    again = mcmc(of, draws=4, warmup=0)
    again.run(X[:, :2], Y)  # and other data
    assert again.get_samples()["beta"].shape == (4, 2)
    assert again._diagnostics[0]["sample_stats"]["sa_weight"].shape == (4,)


def test_a_kernel_with_a_seed_goes_on_with_the_next_seed():
    """MCMC does not tell a kernel which chain it is to start, so a kernel counts its chains."""
    run, next_seed = mcmc(kernel(seed=7)), mcmc(kernel(seed=8))
    run.run(X, Y, **DATA)
    run.run(X, Y, **DATA)
    next_seed.run(X, Y, **DATA)
    assert_same(by_chain(run), by_chain(next_seed))


def test_runs_do_not_change_each_others_results():
    of = kernel()
    first = mcmc(of)
    first.run(X, Y, **DATA)
    kept = pickle.loads(pickle.dumps(first._diagnostics))
    mcmc(of).run(X, Y + 1.0, **DATA)
    for group in ("sample_stats", "adaptation"):
        assert_same(first._diagnostics[0][group], kept[0][group])


# Pyro's options


def test_streaming():
    streaming = StreamingMCMC(kernel(), 6, 3, num_chains=2, disable_progbar=True)
    streaming.run(X, Y, **DATA)
    whole = sequential()
    whole.run(X, Y, **DATA)
    statistics = streaming.get_statistics()
    for name, draws in by_chain(whole).items():
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

    run = mcmc(hook_fn=hook)
    run.run(X, Y, **DATA)
    assert [(stage, i) for stage, i, *_ in seen] == (
        [("Warmup", i) for i in range(3)] + [("Sample", i) for i in range(6)]
    )
    assert torch.equal(torch.stack([beta for *_, beta, _ in seen[3:]]), run.get_samples()["beta"])
    assert [step for *_, step in seen] == list(range(2, 20, 2))


def test_summary_and_diagnostics(capsys):
    run = mcmc(draws=20)
    run.run(X, Y, **DATA)
    run.summary()
    printed = capsys.readouterr().out
    assert "beta[2]" in printed and "sigma2" in printed
    assert "Number of divergences: 0" in printed
    found = run.diagnostics()
    assert found["beta"]["n_eff"].shape == (P,) and found["sigma2"]["r_hat"].shape == ()
    assert found["divergences"] == {"chain 0": []}


def test_predictive():
    run = mcmc()
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
    chosen, whole = mcmc(save_params=names), mcmc()
    chosen.run(X, Y, **DATA)
    whole.run(X, Y, **DATA)
    expected = {name: draws for name, draws in by_chain(whole).items() if name in names}
    assert_same(by_chain(chosen), expected)


def test_save_params_that_name_no_site():
    run = mcmc(save_params=["beta", "gamma"])
    with pytest.raises(aeb.ModelError, match=r"\['gamma'\].*there are .*'beta'"):
        run.run(X, Y, **DATA)


def test_initial_params_are_unconstrained_and_respected():
    first = {
        "beta": torch.tensor([1.0, 2.0, 3.0]),
        "sigma2": torch.tensor(2.0),
        "delta": torch.tensor(-1.0),
    }
    of = kernel(step_size=1e-14, adaptation=aeb.StochasticApproximation(0.0))
    run = mcmc(of, initial_params=first)
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
    run = sequential(kernel(model, step_size=1e-14, adaptation=None), initial_params=first, draws=2)
    run.run(Y)
    draws = by_chain(run)
    torch.testing.assert_close(draws["scale"], first["scale"].exp()[:, None].expand(2, 2))
    torch.testing.assert_close(draws["weights"], torch.full([2, 2, 3], 1 / 3))
    assert draws["free"][0, 0] != draws["free"][1, 0]


def test_the_progress_bar_has_the_kernels_figures(monkeypatch, capsys):
    for variable in ("CI", "PYTEST_XDIST_WORKER"):  # Pyro shows no bar where they are set
        monkeypatch.delenv(variable, raising=False)
    run = mcmc(disable_progbar=False)
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

    run = mcmc(hook_fn=lambda *_: logging.getLogger("pyro.infer.mcmc").addHandler(keep))
    keep = Keep()
    run.run(X, Y, **DATA)
    logging.getLogger("pyro.infer.mcmc").removeHandler(keep)
    figures = [json.loads(re.sub(r"^\[.*?\]\s*", "", message)) for message in records]
    assert len(figures) >= 8
    assert all(f.keys() == {"potential", "sparsity", "sigma", "steps/s"} for f in figures)


@pytest.mark.parametrize("disable_validation", [True, False, None])
def test_validation_on_or_off(disable_validation):
    on, default = mcmc(disable_validation=disable_validation), mcmc()
    for run in (on, default):
        run.run(X, Y, **DATA)
    assert_same(by_chain(on), by_chain(default))


def test_validation_has_its_say():
    run = mcmc(kernel(dense_regression, adaptation=None), disable_validation=False)
    with pytest.raises(ValueError, match="(?s)site .?y"):
        run.run(X, Y.reshape(-1, 1))


# The kernel's options


def test_steps_per_draw_thins():
    every, third = (mcmc(kernel(steps_per_draw=k), d, w) for k, d, w in ((1, 12, 3), (3, 4, 1)))
    for run in (every, third):
        run.run(X, Y, **DATA)
    assert torch.equal(every.get_samples()["beta"][2::3], third.get_samples()["beta"])


def test_latents_freeze_after_warm_up():
    run = mcmc(kernel(freeze_after_warmup=True))
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
    ids=str,
)
def test_what_a_draw_holds(save, sites, summaries):
    run, whole = mcmc(kernel(save=save)), mcmc()
    for each in (run, whole):
        each.run(X, Y, **DATA)
    assert_same(run.get_samples(), {name: whole.get_samples()[name] for name in sites})
    found = run._diagnostics[0]
    expected = whole._diagnostics[0]["adaptation"]
    assert_same(found["adaptation"], {name: expected[name] for name in summaries})
    assert found["sample_stats"].keys() == whole._diagnostics[0]["sample_stats"].keys()


def test_no_warm_up():
    run = mcmc(warmup=0)
    run.run(X, Y, **DATA)
    assert run.get_samples()["beta"].shape == (6, P)


def test_sghmc_and_annealing():
    of = aeb.AEBKernel(
        sparse_regression,
        aeb.SGHMC(aeb.Cyclical(1e-4, 10), friction=0.2),
        aeb.StochasticApproximation(1.0),
        inverse_temperature=aeb.Geometric(1.0, 2.0, every=2),
        minibatches="replacement",
        seed=0,
    )
    run = mcmc(of, draws=4, warmup=2)
    run.run(X, Y, **DATA)
    stats = run._diagnostics[0]["sample_stats"]
    # steps 3 to 6
    assert stats["inverse_temperature"].tolist() == [2.0, 2.0, 4.0, 4.0]
    expected = [0.5e-4 * (1 + math.cos(math.pi * (k - 1) / 10)) for k in range(3, 7)]
    torch.testing.assert_close(stats["step_size"], torch.tensor(expected))


# Models


def shapes(run: MCMC) -> dict[str, tuple[int, ...]]:
    return {name: tuple(draws.shape[1:]) for name, draws in run.get_samples().items()}


def test_without_adaptation_latents_are_sampled_too():
    run = mcmc(kernel(adaptation=None))
    run.run(X, Y, **DATA)
    draws = run.get_samples()
    assert shapes(run) == {"beta": (P,), "delta": (), "sigma2": ()}
    assert all(len(draw.unique(dim=0)) == 6 for draw in draws.values())
    assert set(run._diagnostics[0]["roles"].values()) == {"draw", "observed"}
    assert run._diagnostics[0]["adaptation"] == {}


def test_eight_schools():
    run = mcmc(kernel(eight_schools))
    run.run(SCHOOLS_SIGMA, SCHOOLS_Y)
    assert shapes(run) == {"mu": (), "tau": (), "eta": (8,)}
    assert (run.get_samples()["tau"] > 0).all()
    idata = aeb.to_arviz(run)
    assert idata.posterior["eta"].dims == ("chain", "draw", "schools")
    predicted = Predictive(eight_schools, run.get_samples())(SCHOOLS_SIGMA)
    assert predicted["y"].shape == predicted["theta"].shape == (6, 8)


def test_a_horseshoe():
    def model(X, y):
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("features", P):
            lambdas = pyro.sample("lambdas", dist.HalfCauchy(tau))
            w = pyro.sample("w", dist.Normal(0.0, lambdas))
        slope = pyro.sample("slope", dist.Laplace(0.0, tau))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w + slope, 0.5), obs=y)

    run = mcmc(kernel(model))
    run.run(X, Y)
    assert shapes(run) == {"tau": (), "lambdas": (P,), "w": (P,), "slope": ()}


def test_a_network_of_pyros_tutorials():
    network = DenseNetwork()
    run = mcmc(kernel(network))
    run.run(X, Y)
    assert shapes(run) == {
        "first.weight": (4, P),
        "first.bias": (4,),
        "last.weight": (1, 4),
        "scale": (),
    }
    assert Predictive(network.eval(), run.get_samples())(X[:5])["y"].shape == (6, 5)


def test_layers_with_their_own_delta():
    run = mcmc(kernel(sparse_layers))
    run.run(X, Y)
    assert shapes(run) == {"sigma2": (), "delta0": (), "delta1": (), "w0": (P, 4), "w1": (4, 1)}
    adaptation = run._diagnostics[0]["adaptation"]
    assert {name: tuple(rho.shape) for name, rho in adaptation.items()} == {
        "w0_rho": (6, P, 4),
        "w1_rho": (6, 4, 1),
    }


@pytest.mark.parametrize("adaptation", [ADAPTATION, None], ids=["SA", "plain"])
def test_latents_of_one_element_keep_their_shape(adaptation):
    def model(X, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0).expand([1]).to_event(1))
        with pyro.plate("layers", 1):
            delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        with pyro.plate("features", P):
            beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta[0], sigma2[0].sqrt()))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ beta, sigma2[0].sqrt()), obs=y)

    run = mcmc(kernel(model, adaptation=adaptation))
    run.run(X, Y)
    assert shapes(run) == {"sigma2": (1,), "delta": (1,), "beta": (P,)}


@pytest.mark.parametrize("adaptation", [ADAPTATION, None], ids=["SA", "plain"])
def test_double_precision(adaptation):
    run = mcmc(kernel(double_regression, adaptation=adaptation))
    run.run(X.double(), Y.double())
    assert {draws.dtype for draws in run.get_samples().values()} == {torch.float64}


def test_double_precision_by_default():
    torch.set_default_dtype(torch.float64)
    run = mcmc()
    run.run(X.double(), Y.double(), **DATA)
    assert {draws.dtype for draws in run.get_samples().values()} == {torch.float64}
    stats = run._diagnostics[0]["sample_stats"]
    assert {value.dtype for value in stats.values()} == {torch.float64, torch.bool}


@pytest.mark.parametrize("adaptation", [ADAPTATION, None], ids=["SA", "plain"])
@pytest.mark.parametrize("n, p", [(20, 1), (1, 3), (1, 1)])
def test_one_feature_or_one_datum(n, p, adaptation):
    run = mcmc(kernel(adaptation=adaptation))
    run.run(X[:n, :p], Y[:n])
    assert shapes(run) == {"beta": (p,), "delta": (), "sigma2": ()}
    assert all(torch.isfinite(draw).all() for draw in run.get_samples().values())


def test_a_model_without_arguments():
    def model():
        _, _, beta = sparse_prior()
        with pyro.plate("data", N, subsample_size=4) as i:
            pyro.sample("y", dist.Bernoulli(logits=X[i] @ beta), obs=(Y[i] > 0).float())

    run = mcmc(kernel(model))
    run.run()
    assert run.get_samples()["beta"].shape == (6, P)


def test_a_model_without_data_samples_its_prior():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    run = mcmc(kernel(model))
    run.run()
    assert run.get_samples()["z"].shape == (6, 2)


# Posteriors


def within(draws: torch.Tensor, mean, variance, correlation) -> None:
    """
    Checks means of draws against the mean of a stationary AR(1) process, within 5 standard errors
    of its mean: the variance of a mean of m draws is variance / m (1 + r) / (1 - r) for m large.
    """
    error = (variance / len(draws) * (1 + correlation) / (1 - correlation)) ** 0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error).all(), (draws.mean(0) - mean) / error


@pytest.mark.slow
def test_a_conjugate_posterior():
    """
    Linear regression with known noise: the posterior is N(m, H^-1) with H = X'X / s^2 + I / 4 and
    H m = X'y / s^2. In the eigenvectors of H a step of SGLD is an AR(1) process around m with
    r = 1 - epsilon h, so draws have r^k and variance 1 / (h (1 - epsilon h / 2)).
    """
    torch.set_default_dtype(torch.float64)
    x, y = X.double(), Y.double()
    H = x.T @ x / 0.25 + torch.eye(P) / 4.0
    mean = torch.linalg.solve(H, x.T @ y / 0.25)
    h, vectors = torch.linalg.eigh(H)
    epsilon, k = 0.4 / float(h.max()), 5
    run = mcmc(kernel(dense_regression, epsilon, steps_per_draw=k, adaptation=None), 2000, 100)
    run.run(x, y)
    draws = (run.get_samples()["w"] - mean) @ vectors
    correlation = (1 - epsilon * h) ** k
    variance = 1 / (h * (1 - epsilon * h / 2))
    within(draws, torch.zeros(P), variance, correlation)
    # Squares of a Gaussian AR(1) process are correlated by r^2, with variance 2 variance^2.
    within(draws**2, variance, 2 * variance**2, correlation**2)


class Law:
    """
    The law of every k-th step of SGLD in one dimension, u' ~ N(u + epsilon g(u), 2 epsilon) with g
    the derivative of a log density, on a grid.
    """

    def __init__(self, log_density, step_size: float, k: int, grid: torch.Tensor) -> None:
        u = grid.clone().requires_grad_()
        (g,) = torch.autograd.grad(log_density(u).sum(), u)
        centre, scale = grid + step_size * g, math.sqrt(2 * step_size)
        step = torch.exp(-0.5 * ((grid - centre[:, None]) / scale) ** 2)
        self.transition = torch.linalg.matrix_power(step / step.sum(1, keepdim=True), k)
        self.stationary = torch.linalg.matrix_power(self.transition, 2**20)[0]

    def mean_and_error(self, f: torch.Tensor, draws: int):
        """The mean of f over many draws, and its standard error, by the Poisson equation."""
        mean = self.stationary @ f
        f = f - mean
        # s = f + K s with stationary mean 0; the variance of the mean is E[2 f s - f^2] / draws
        system = torch.eye(len(f)) - self.transition + self.stationary
        s = torch.linalg.solve(system, f)
        return mean, (self.stationary @ (2 * f * s - f**2) / draws).sqrt()


def positive():
    """x = exp(u), with Jacobian exp(u)."""
    y = 2.0 * linear_data(5, dtype=torch.float64)[1]

    def model():
        scale = pyro.sample("x", dist.HalfCauchy(1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    def log_density(u):
        prior = dist.HalfCauchy(1.0).log_prob(u.exp()) + u
        return prior + dist.Normal(0.0, u.exp()[:, None]).log_prob(y).sum(-1)

    centre = float(y.square().mean().sqrt().log())
    return model, log_density, torch.exp, (centre - 1.2, centre + 4.0), 0.05


def simplex():
    """x0 = sigmoid(u), which is stick breaking of two, with Jacobian x0 (1 - x0)."""

    def model():
        x = pyro.sample("x", dist.Dirichlet(torch.tensor([1.0, 2.0])))
        pyro.sample("y", dist.Multinomial(8, x), obs=torch.tensor([6.0, 2.0]))

    def log_density(u):  # the posterior is Dirichlet(7, 4)
        return 7 * torch.nn.functional.logsigmoid(u) + 4 * torch.nn.functional.logsigmoid(-u)

    return model, log_density, torch.sigmoid, (-8.0, 8.0), 0.2


def interval():
    """x = -1 + 3 sigmoid(u), with Jacobian proportional to sigmoid(u) (1 - sigmoid(u))."""

    def constrained(u):
        return 3 * torch.sigmoid(u) - 1

    def model():
        x = pyro.sample("x", dist.Uniform(-1.0, 2.0))
        pyro.sample("y", dist.Normal(x, 0.7), obs=torch.tensor(0.8))

    def log_density(u):
        jacobian = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
        return jacobian - (0.8 - constrained(u)) ** 2 / (2 * 0.49)

    return model, log_density, constrained, (-8.0, 8.0), 0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", [positive, simplex, interval], ids=lambda case: case.__name__)
def test_a_posterior_in_a_constrained_space(case):
    """
    Against the law of the chain itself, with its finite steps, computed on a grid of the
    unconstrained space: the only tolerance is Monte Carlo error, 5 standard errors.
    """
    torch.set_default_dtype(torch.float64)
    model, log_density, constrained, (low, high), step_size = case()
    draws, k = 1000, 5
    run = mcmc(kernel(model, step_size, adaptation=None, steps_per_draw=k), draws, 50)
    run.run()
    x = run.get_samples()["x"].reshape(draws, -1)[:, 0]
    grid = torch.linspace(low, high, 400)
    law = Law(log_density, step_size, k, grid)
    for f in (lambda x: x, lambda x: x**2):
        mean, error = law.mean_and_error(f(constrained(grid)), draws)
        assert abs(f(x).mean() - mean) < 5 * error
        assert error < 0.1 * mean, "the test says little"


# Runs that end early


def interrupted(of: aeb.AEBKernel, at: int, error=KeyboardInterrupt) -> None:
    def hook(kernel, params, stage, i):
        if (stage, i) == ("Sample", at):
            raise error("stop")

    with pytest.raises(error, match="stop"):
        mcmc(of, hook_fn=hook).run(X, Y, **DATA)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_draws_of_a_run_cut_short_are_recovered(error):
    of, whole = kernel(), mcmc()
    interrupted(of, 3, error)
    whole.run(X, Y, **DATA)
    assert_same(of.recover(), {name: draws[:4] for name, draws in whole.get_samples().items()})


def test_nothing_is_recovered_of_a_run_that_ended_well():
    run = mcmc()
    run.run(X, Y, **DATA)
    assert run.kernel.recover() == {}


def test_a_kernel_works_again_after_an_error():
    of = kernel(seed=None)
    interrupted(of, 2)
    pyro.set_rng_seed(1)
    again = mcmc(of)
    again.run(X, Y, **DATA)
    assert of.recover() == {}
    pyro.set_rng_seed(1)
    fresh = mcmc(kernel(seed=None))
    fresh.run(X, Y, **DATA)
    assert_same(by_chain(again), by_chain(fresh))


def test_a_kernel_works_again_after_a_model_that_was_refused():
    of = kernel()
    with pytest.raises(aeb.ModelError):
        mcmc(of).run(X * math.nan, Y)
    run = mcmc(of)
    run.run(X, Y, **DATA)
    assert run.get_samples()["beta"].shape == (6, P)


class Fuse:
    """A regression whose data turn infinite after so many runs of the model."""

    def __init__(self, runs: int) -> None:
        self.runs = runs

    def __call__(self, X, y):
        self.runs -= 1
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w * (1.0 if self.runs > 0 else math.inf), 1.0), obs=y)


def blown_up(run: MCMC) -> aeb.NonFiniteError:
    with pytest.raises(aeb.NonFiniteError, match="gradient of site 'w' is not finite") as info:
        run.run(X, Y)
    return info.value


def test_a_run_that_blows_up_hands_out_its_draws():
    of = kernel(Fuse(30), steps_per_draw=1)
    error = blown_up(mcmc(of, draws=100))
    assert error.site == "w" and error.step > 3
    assert error.draws["w"].shape == (error.step - 1 - 3, P)  # without warm-up
    assert torch.isfinite(error.draws["w"]).all()
    assert torch.equal(of.recover()["w"], error.draws["w"])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_a_chain_that_blows_up_in_a_process_hands_out_its_draws(context, capfd):
    """The process ends with its error, so nothing of the error may live in that process."""
    error = blown_up(parallel(kernel(Fuse(30), steps_per_draw=1), context, draws=100))
    assert error.site == "w" and error.step > 3
    assert error.draws["w"].shape == (error.step - 1 - 3, P)
    assert torch.isfinite(error.draws["w"]).all()
