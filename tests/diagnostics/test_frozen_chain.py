# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Experiments on a chain with frozen latents, against closed forms on Gaussians."""

import math

import pytest
import torch
from models import dense_regression
from pyro.infer import MCMC
from runs import assert_same_records, copy_records
from small_runs import PRECISION, P, X, Y, gaussian, loader_regression, make_kernel, run_mcmc
from torch.utils.data import DataLoader, TensorDataset, default_collate

import pyro_aeb as aeb
from pyro_aeb.diagnostics.frozen_chain import freeze
from pyro_aeb.diagnostics.stein import compute_scores
from pyro_aeb.testing import sghmc_covariance, sgld_variance

ONE_CHAIN = {"chains": 1, "chain_method": "sequential", "draws": 20}


def run_diagnostics(mcmc, chain=0) -> None:
    aeb.diagnostics.temperature(mcmc, steps=10, chain=chain)
    aeb.diagnostics.noise_ratio(mcmc, minibatches=2, chain=chain)
    aeb.diagnostics.step_halving(mcmc, steps=100, chain=chain)
    aeb.diagnostics.ksd(mcmc, draws=5, chain=chain)


# The run is restored


def make_loader() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)


@pytest.mark.parametrize(
    ("method", "data", "seed"),
    [
        ("sequential", "tensors", 3),
        ("vectorized", "tensors", None),
        ("sequential", "loader", None),
        ("vectorized", "loader", 3),
    ],
)
def test_a_run_goes_on_bit_for_bit(method, data, seed):
    def start():
        torch.manual_seed(9)
        model = {"model": loader_regression} if data == "loader" else {}
        kernel = make_kernel(**model, seed=seed, pruning=aeb.MagnitudePruning(0.25))
        args, more = ((make_loader(),), {}) if data == "loader" else ((X, Y), {"batch_size": 10})
        mcmc = run_mcmc(kernel, draws=12, warmup=2, chain_method=method, args=args, kwargs=more)
        return mcmc, args, more

    plain, args, more = start()
    plain.run(*args, **more)
    mcmc, args, more = start()
    for chain in (1, 0):
        run_diagnostics(mcmc, chain)
    mcmc.run(*args, **more)
    assert_same_records(copy_records(mcmc), copy_records(plain))


def test_chains_of_other_processes_are_started_here_and_let_go():
    mcmc = run_mcmc(draws=10, warmup=2, chain_method="parallel", mp_context="fork")
    run_diagnostics(mcmc, chain=1)
    assert all(group.chain is None for group in mcmc._groups)
    mcmc.run(X, Y)
    assert mcmc.get_samples(group_by_chain=True)["beta"].shape == (2, 20, P)


def test_pyros_mcmc_keeps_the_last_chain():
    mcmc = MCMC(make_kernel(), 10, 2, disable_progbar=True)
    mcmc.run(X, Y)
    run_diagnostics(mcmc)
    with pytest.raises(RuntimeError, match="chain 3 is not in this process"):
        run_diagnostics(mcmc, chain=3)


# The temperature


def test_the_temperature_of_every_site():
    def two_sites():
        gaussian(2000)

    kernel = make_kernel(two_sites, aeb.SGHMC(0.2, friction=0.4), adaptation=None)
    mcmc = run_mcmc(kernel, args=(), **ONE_CHAIN)
    total, site = aeb.diagnostics.temperature(mcmc, steps=50)
    assert (total.site, site.site) == ("all", "w")
    expected = sghmc_covariance(0.2, 1.0, PRECISION, 0.4)[0, 0] / (0.2 / (1 - 0.4 / 2))
    assert abs(site.ratio - expected) < 5 * site.error
    assert total[1:] == site[1:]


def test_few_steps_and_silent_transitions_are_refused():
    mcmc = run_mcmc(**ONE_CHAIN)
    with pytest.raises(ValueError, match="steps is 5, expected at least 10"):
        aeb.diagnostics.temperature(mcmc, steps=5)
    with pytest.raises(ValueError, match="steps is 5, expected at least 100"):
        aeb.diagnostics.step_halving(mcmc, steps=5)
    with pytest.raises(ValueError, match="minibatches is 1, expected at least 2"):
        aeb.diagnostics.noise_ratio(mcmc, minibatches=1)


def test_every_chain_has_its_own_part_of_a_nested_batch():
    def model(batch):
        loader_regression(batch["x"], *batch["y"])

    data = [{"x": x, "y": [y]} for x, y in zip(X, Y, strict=True)]
    loader = DataLoader(data, batch_size=10, collate_fn=lambda items: (default_collate(items),))
    mcmc = run_mcmc(make_kernel(model), draws=2, warmup=1, args=(loader,))
    with freeze(mcmc, 1, "test") as frozen:
        (batch,), _ = frozen.next_batch().arguments
    assert batch["x"].shape == (10, P) and batch["y"][0].shape == (10,)


# Noise


@pytest.mark.parametrize("transition", [aeb.SGLD(1e-3), aeb.SGHMC(1e-3, friction=0.2)])
def test_the_noise_ratio_is_that_of_all_minibatches(transition):
    tau, batch, n = 2.0, 10, len(X)
    kernel = make_kernel(
        dense_regression, transition, adaptation=None, minibatches="replacement",
        inverse_temperature=tau,
    )  # fmt: skip
    mcmc = run_mcmc(kernel, kwargs={"batch_size": batch}, **ONE_CHAIN)
    found = aeb.diagnostics.noise_ratio(mcmc, minibatches=1000)[0]
    w = mcmc.kernel.chain.state.position
    each = 4.0 * X * (Y - X @ w)[:, None]  # gradients of the data, noise of sd 1/2
    variance = float(n**2 / batch * each.var(0, correction=0).mean())
    friction = getattr(transition, "friction", 1.0)
    assert found.injected == pytest.approx(2 * 1e-3 * friction / tau)
    # The variance of a variance, of means of ten: 5 standard errors, as if they were normal.
    assert found.minibatch == pytest.approx(1e-6 * variance, rel=5 * math.sqrt(2 / 999))
    assert found.ratio == pytest.approx(found.injected / found.minibatch)


def test_without_minibatches_there_is_no_noise():
    found = aeb.diagnostics.noise_ratio(run_mcmc(**ONE_CHAIN))
    assert [noise.ratio for noise in found] == [math.inf, math.inf]


# Steps of half the size


@pytest.mark.parametrize(("step_size", "differs"), [(0.25, True), (0.01, False)])
def test_halving_the_step_finds_the_bias_of_the_variance(step_size, differs):
    size = 50
    kernel = make_kernel(lambda: gaussian(size), aeb.SGLD(step_size), adaptation=None)
    mcmc = run_mcmc(kernel, args=(), **ONE_CHAIN)
    mean, variance = aeb.diagnostics.step_halving(mcmc, steps=1000)
    assert (mean.moment, variance.moment, mean.site) == ("mean", "variance", "w")
    coarse, fine = (sgld_variance(e, 1.0, PRECISION) for e in (step_size, step_size / 2))
    assert variance.differs == differs and not mean.differs
    assert abs(variance.coarse - variance.fine - (coarse - fine)) < 5 * variance.error
    if differs:
        assert variance.fine == pytest.approx(fine, rel=0.1)
        assert variance.bias == pytest.approx(2 * (coarse - fine) / fine, rel=0.2)


def test_steps_that_run_away_are_an_error():
    mcmc = run_mcmc(make_kernel(gaussian, aeb.SGLD(0.4), adaptation=None), args=(), **ONE_CHAIN)
    with freeze(mcmc, 0, "test") as frozen:
        with pytest.raises(aeb.NonFiniteError, match="further steps of size 1e.10 diverged"):
            list(frozen.steps(100, step_size=1e10))


# Scores on all data


@pytest.mark.parametrize("batch", [None, 10, 7])
def test_scores_are_of_all_data(batch):
    kernel = make_kernel(dense_regression, aeb.SGLD(1e-3), adaptation=None, inverse_temperature=2.0)
    mcmc = run_mcmc(kernel, kwargs={"batch_size": batch}, **ONE_CHAIN)
    points = torch.randn(3, P)
    with freeze(mcmc, 0, "test") as frozen:
        found = compute_scores(frozen, points)
    expected = 2.0 * (4.0 * (Y - points @ X.T) @ X - points / 4.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("batch", [8, 15])  # the last batch of 15 has 10
def test_scores_by_a_loader_are_those_on_all_data(method, batch):
    data = DataLoader(TensorDataset(X, Y), batch_size=batch, shuffle=method == "sequential")
    if method == "vectorized" and batch == 15:
        data = DataLoader(TensorDataset(X, Y), batch_size=20)
    mcmc = run_mcmc(
        make_kernel(loader_regression), draws=5, warmup=1, chain_method=method, args=(data,)
    )
    whole = run_mcmc(make_kernel(), draws=5, warmup=1, chain_method=method)
    points = torch.randn(3, P)
    with freeze(mcmc, 1, "test") as frozen:
        latents, found = frozen.latents, compute_scores(frozen, points)
    with freeze(whole, 1, "test") as frozen:
        row = frozen._place
        own = frozen.chain.latents
        if row is None:
            frozen.chain.latents = latents
        else:
            values = latents.ssgl
            parts = [torch.stack([a, a]) if torch.is_tensor(a) and a.dim() else a for a in values]
            frozen.chain.latents = own._replace(ssgl=type(own.ssgl)(*parts))
        torch.testing.assert_close(found, compute_scores(frozen, points), rtol=1e-4, atol=1e-3)
