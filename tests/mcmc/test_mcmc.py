# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The kernel under Pyro's own MCMC, as its users run it: chains and their draws."""

from __future__ import annotations

import math
import pickle

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import DenseNetwork, P, linear_data
from pyro.infer import MCMC, Predictive
from pyro_runs import (
    DATA,
    N,
    X,
    Y,
    assert_same_draws,
    make_kernel,
    make_parallel_mcmc,
    make_pyro_mcmc,
    make_sequential_mcmc,
    samples_by_chain,
)

import pyro_aeb as aeb

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
        "kinetic_temperature",
        "sa_residual_rho",
        "sa_residual_sigma",
        "sa_residual_delta",
    }
    assert statistics == set(idata.sample_stats.data_vars)
    assert all(idata.sample_stats[name].dims == ("chain", "draw") for name in statistics)
    assert idata.adaptation["beta_rho"].dims == ("chain", "draw", "features")
    assert Predictive(model, mcmc.get_samples())(X_test)["y"].shape == (20, 5)


# Chains


def test_one_chain():
    run = make_pyro_mcmc()
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
        run = make_pyro_mcmc(num_chains=2)
    run.run(X, Y, **DATA)
    assert samples_by_chain(run)["beta"].shape == (2, 6, P)
    assert [len(d["sample_stats"]["potential"]) for d in run._diagnostics] == [6, 6]


@pytest.mark.parametrize("seed", [7, None])
def test_chains_differ(seed):
    run = make_sequential_mcmc(make_kernel(seed=seed))
    run.run(X, Y, **DATA)
    first, second = samples_by_chain(run)["beta"]
    assert (first != second).all()


def test_chain_i_uses_seed_plus_i():
    two, alone = make_sequential_mcmc(make_kernel(seed=7)), make_pyro_mcmc(make_kernel(seed=8))
    two.run(X, Y, **DATA)
    alone.run(X, Y, **DATA)
    second = {name: draws[1:] for name, draws in samples_by_chain(two).items()}
    assert_same_draws(second, samples_by_chain(alone))


def test_a_seed_gives_the_same_draws_whatever_the_global_state():
    runs = []
    for state in range(2):
        pyro.set_rng_seed(state)
        runs.append(make_pyro_mcmc())
        before = torch.get_rng_state()
        runs[-1].run(X, Y, **DATA)
        assert torch.equal(before, torch.get_rng_state())
    assert_same_draws(samples_by_chain(runs[0]), samples_by_chain(runs[1]))


def test_without_a_seed_draws_follow_the_global_state():
    found = []
    for state in (0, 0, 1):
        pyro.set_rng_seed(state)
        run = make_pyro_mcmc(make_kernel(seed=None))
        run.run(X, Y, **DATA)
        found.append(run.get_samples()["beta"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_two_chains_in_processes(context):
    side_by_side, in_turn = make_parallel_mcmc(context=context), make_sequential_mcmc()
    for run in (side_by_side, in_turn):
        run.run(X, Y, **DATA)
    assert samples_by_chain(side_by_side)["beta"].shape == (2, 6, P)
    assert_same_draws(samples_by_chain(side_by_side), samples_by_chain(in_turn))
    for there, here in zip(side_by_side._diagnostics, in_turn._diagnostics, strict=True):
        for group in ("sample_stats", "adaptation"):
            assert_same_draws(there[group], here[group])
        assert there["roles"] == here["roles"] and there["dims"] == here["dims"]
    posterior = aeb.to_arviz(side_by_side).posterior["beta"]
    np.testing.assert_array_equal(posterior.values, samples_by_chain(side_by_side)["beta"].numpy())


@pytest.mark.slow
def test_chains_in_processes_differ_without_a_seed():
    run = make_parallel_mcmc(make_kernel(seed=None), context="fork")
    run.run(X, Y, **DATA)
    first, second = samples_by_chain(run)["beta"]
    assert (first != second).all()


@pytest.mark.slow
def test_a_module_and_its_first_values_in_processes():
    # The same for both chains: Pyro gives all processes those of the last one.
    first = {"first.bias": torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(2, 4)}
    kernel = make_kernel(DenseNetwork(), step_size=1e-14, steps_per_draw=1)
    run = make_parallel_mcmc(kernel, initial_params=first, draws=2)
    run.run(X, Y)
    # With such a step size draws stay where they start.
    expected = first["first.bias"][:, None].expand(2, 2, 4)
    torch.testing.assert_close(samples_by_chain(run)["first.bias"], expected)


# One run after another


def test_a_second_run_of_the_same_mcmc():
    run = make_pyro_mcmc(make_kernel(seed=None))
    run.run(X, Y, **DATA)
    first = run.get_samples()["beta"]
    run.run(X, Y + 1.0, **DATA)
    second = run.get_samples()["beta"]
    assert second.shape == first.shape and not torch.equal(first, second)
    assert len(run._diagnostics[0]["sample_stats"]["potential"]) == 6


def test_a_second_mcmc_with_the_same_kernel():
    kernel = make_kernel()
    make_pyro_mcmc(kernel).run(X, Y, **DATA)
    again = make_pyro_mcmc(kernel, draws=4, warmup=0)
    again.run(X[:, :2], Y)  # and other data
    assert again.get_samples()["beta"].shape == (4, 2)
    assert again._diagnostics[0]["sample_stats"]["sa_weight"].shape == (4,)


def test_a_kernel_with_a_seed_continues_with_the_next_seed():
    """MCMC does not pass the number of a chain to a kernel, so a kernel counts its chains."""
    run, next_seed = make_pyro_mcmc(make_kernel(seed=7)), make_pyro_mcmc(make_kernel(seed=8))
    run.run(X, Y, **DATA)
    run.run(X, Y, **DATA)
    next_seed.run(X, Y, **DATA)
    assert_same_draws(samples_by_chain(run), samples_by_chain(next_seed))


def test_runs_do_not_change_each_others_results():
    kernel = make_kernel()
    first = make_pyro_mcmc(kernel)
    first.run(X, Y, **DATA)
    kept = pickle.loads(pickle.dumps(first._diagnostics))
    make_pyro_mcmc(kernel).run(X, Y + 1.0, **DATA)
    for group in ("sample_stats", "adaptation"):
        assert_same_draws(first._diagnostics[0][group], kept[0][group])


# Runs that end early


def interrupt_run(kernel: aeb.AEBKernel, at: int, error=KeyboardInterrupt) -> None:
    def hook(kernel, params, stage, i):
        if (stage, i) == ("Sample", at):
            raise error("stop")

    with pytest.raises(error, match="stop"):
        make_pyro_mcmc(kernel, hook_fn=hook).run(X, Y, **DATA)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_draws_of_a_run_cut_short_are_recovered(error):
    kernel, whole = make_kernel(), make_pyro_mcmc()
    interrupt_run(kernel, 3, error)
    whole.run(X, Y, **DATA)
    assert_same_draws(
        kernel.recover(), {name: draws[:4] for name, draws in whole.get_samples().items()}
    )


def test_nothing_is_recovered_of_a_run_that_ended_well():
    run = make_pyro_mcmc()
    run.run(X, Y, **DATA)
    assert run.kernel.recover() == {}


def test_a_kernel_works_again_after_an_error():
    kernel = make_kernel(seed=None)
    interrupt_run(kernel, 2)
    pyro.set_rng_seed(1)
    again = make_pyro_mcmc(kernel)
    again.run(X, Y, **DATA)
    assert kernel.recover() == {}
    pyro.set_rng_seed(1)
    fresh = make_pyro_mcmc(make_kernel(seed=None))
    fresh.run(X, Y, **DATA)
    assert_same_draws(samples_by_chain(again), samples_by_chain(fresh))


def test_a_kernel_works_again_after_a_model_that_was_refused():
    kernel = make_kernel()
    with pytest.raises(aeb.ModelError):
        make_pyro_mcmc(kernel).run(X * math.nan, Y)
    run = make_pyro_mcmc(kernel)
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


def divergence_error(run: MCMC) -> aeb.NonFiniteError:
    with pytest.raises(aeb.NonFiniteError, match="gradient of site 'w' is not finite") as info:
        run.run(X, Y)
    return info.value


def test_a_run_that_diverges_returns_its_draws():
    kernel = make_kernel(Fuse(30), steps_per_draw=1)
    error = divergence_error(make_pyro_mcmc(kernel, draws=100))
    assert error.site == "w" and error.step > 3
    assert error.draws["w"].shape == (error.step - 1 - 3, P)  # without warm-up
    assert torch.isfinite(error.draws["w"]).all()
    assert torch.equal(kernel.recover()["w"], error.draws["w"])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["forkserver", "fork"])
def test_a_chain_that_diverges_in_a_process_returns_its_draws(context, capfd):
    """The process ends with its error, so nothing of the error may live in that process."""
    error = divergence_error(
        make_parallel_mcmc(make_kernel(Fuse(30), steps_per_draw=1), context, draws=100)
    )
    assert error.site == "w" and error.step > 3
    assert error.draws["w"].shape == (error.step - 1 - 3, P)
    assert torch.isfinite(error.draws["w"]).all()
