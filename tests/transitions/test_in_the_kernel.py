# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Every transition inside ``AEBKernel``: learned latents, pruning, chains, checkpoints."""

from __future__ import annotations

import pytest
import torch
from models import sparse_regression
from pyro_runs import ADAPTATION
from runs import Stop, StopAt, X, Y, assert_same_records, copy_records, make_mcmc, resume_mcmc
from samplers import transition_classes

import pyro_aeb as aeb
from pyro_aeb.transitions import (
    BAOAB,
    HMC,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    SVRG,
    ContourSGLD,
    CyclicalSGMCMC,
    ReplicaExchange,
    TunedBAOAB,
)

CYCLES = aeb.Cyclical(1e-3, period=6)
# With the figures of its own that each reports for a draw.
CASES = {
    "SGLD": (SGLD(1e-3), {"kinetic_temperature"}),
    "SGHMC": (SGHMC(1e-3), {"kinetic_temperature"}),
    "SGNHT": (SGNHT(1e-3), {"kinetic_temperature", "friction"}),
    "BAOAB": (BAOAB(1e-3), {"kinetic_temperature"}),
    "PSGLD": (PSGLD(1e-2), set()),
    "PSGLD corrected": (PSGLD(1e-2, correction=True, adapt_until=9), set()),
    "cyclical": (CyclicalSGMCMC(SGHMC(CYCLES)), {"kinetic_temperature", "sampling"}),
    "SVRG": (SVRG(SGLD(1e-3), every=3), {"kinetic_temperature"}),
    "SVRG, thermostat": (SVRG(SGNHT(1e-3), every=3), {"kinetic_temperature", "friction"}),
    "replicas": (ReplicaExchange(SGHMC(1e-3), swap_every=2), {"swap_rate"}),
    "replicas by batch": (
        ReplicaExchange(SGLD(1e-3), swap_every=2, energies="batch", variance_every=2),
        {"swap_rate"},
    ),
    "contour": (ContourSGLD(1e-3, energies=(0.0, 100.0), bins=10), {"log_weight"}),
    "HMC": (HMC(1e-3, leapfrogs=3), {"acceptance_rate"}),
    # Its tuning: tests/tuning.
    "tuned": (TunedBAOAB(1e-3, 0.1, 1.0), {"kinetic_temperature"}),
}
PRUNING = aeb.MagnitudePruning(aeb.PruningSchedule(0.34, 0.5, 4), freeze=True)


def make_run(transition, method="vectorized", **options) -> aeb.MCMC:
    kernel = aeb.AEBKernel(
        sparse_regression,
        transition,
        adaptation=ADAPTATION,
        pruning=PRUNING,
        steps_per_draw=2,
        seed=7,
    )
    return make_mcmc(kernel, draws=5, warmup=2, method=method, **options)


def test_every_transition_is_here():
    assert {type(transition) for transition, _ in CASES.values()} == transition_classes()


@pytest.mark.parametrize("name", CASES)
def test_it_runs_with_all_that_the_kernel_has(name, tmp_path):
    torch.set_default_dtype(torch.float64)  # rounding does not grow into a difference then
    transition, figures = CASES[name]
    x, y = X.double(), Y.double()
    run = make_run(transition)
    run.run(x, y, batch_size=5)
    found = copy_records(run)

    # Chains that step together are the chains that run one after the other.
    alone = make_run(transition, "sequential")
    alone.run(x, y, batch_size=5)
    expected = copy_records(alone)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, equal_nan=True, msg=key)

    # One that was cut short, and goes on from its checkpoint, is the same bit for bit.
    stopped = make_run(transition, hook_fn=StopAt("Sample", 2), checkpoint=tmp_path / "run")
    with pytest.raises(Stop):
        stopped.run(x, y, batch_size=5)
    rest = resume_mcmc(tmp_path / "run", sparse_regression)
    assert rest.kernel.transition == transition
    rest.run(x, y, batch_size=5)
    assert_same_records(copy_records(rest), found)

    # One weight of three is zero at the end, in whatever holds weights; latents have moved.
    beta = found["posterior: beta"]
    assert ((beta[:, -1] == 0.0).sum(-1) == 1).all() and (beta[:, 0] != beta[:, -1]).any()
    state = run.kernel.chain.state
    for field in getattr(state, "held", ("momentum",)):
        if hasattr(state, field):
            assert torch.equal(getattr(state, field) == 0.0, state.position == 0.0), field
    assert (found["posterior: sigma2"].diff(dim=1) != 0.0).all()

    # ArviZ has its figures.
    stats = aeb.to_arviz(run).sample_stats
    assert figures <= set(stats.data_vars)
    for figure in figures:
        assert stats[figure].shape == (2, 5)


@pytest.mark.parametrize("name", ["PSGLD corrected", "replicas", "HMC"])
def test_decisions_need_normal_noise(name):
    with pytest.raises(ValueError, match="noise is 'three-point'.*expected 'normal'"):
        aeb.AEBKernel(sparse_regression, CASES[name][0], noise="three-point")


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", ["SVRG, thermostat", "contour", "HMC"])
def test_the_temperature_of_a_run(name, method):
    transition, figures = CASES[name]
    run = make_run(transition, method)
    run.run(X, Y, batch_size=5)
    if "kinetic_temperature" in figures:
        found = aeb.diagnostics.temperature(run, steps=20)
        assert [site.site for site in found] == ["all", "beta"] and found[0].ratio > 0.0
        return
    with pytest.raises(TypeError, match="has no statistics.* with 'kinetic_temperature'"):
        aeb.diagnostics.temperature(run, steps=20)


@pytest.mark.parametrize("name", ["SVRG", "replicas"])
def test_steps_can_be_halved(name):
    run = make_run(CASES[name][0])
    run.run(X, Y, batch_size=5)
    assert aeb.diagnostics.step_halving(run, 100)
