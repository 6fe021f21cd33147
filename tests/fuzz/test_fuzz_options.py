# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Junk for the options of schedules, transitions, adaptation, pruning, kernel and runs: it either
works or raises an error that names the option and its value. See :mod:`fuzzing` for the number of
examples.
"""

from __future__ import annotations

import math
import pickle
from numbers import Real

import numpy as np
import pytest
import torch
from fuzzing import fewer_examples, junk, not_numbers
from hypothesis import assume, given
from hypothesis import strategies as st
from models import sparse_regression
from pruning_structures import make_structure, prune_once
from refusals import X, Y, count_refusal

import pyro_aeb as aeb
from pyro_aeb import transitions
from pyro_aeb.errors import ModelError
from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, Pruner, UnitPruning

finite = st.floats(1e-6, 1e6)
SCHEDULES = {
    aeb.Constant: {"value": junk},
    aeb.Polynomial: {"scale": junk, "offset": junk, "power": junk},
    aeb.Geometric: {"initial": junk, "rate": junk, "every": junk},
    aeb.Piecewise: {
        "initial": junk,
        "factors": st.one_of(junk, st.dictionaries(st.integers(1, 9), finite, max_size=3)),
    },
    aeb.Cyclical: {"initial": junk, "period": junk},
    aeb.PruningSchedule: {"target": junk, "damping": junk, "period": junk},
}
schedules = st.sampled_from(list(SCHEDULES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.fixed_dictionaries(SCHEDULES[kind]))
)
steps = st.one_of(st.integers(1, 1000), st.sampled_from([10**6, 10**9, 2**62]))


# Parts of messages that say what was expected, or what to do.
ADVICE = (
    *("expected", "lower the sparsity", "there are", "links:", "name some of", "are there"),
    *("SSGL sites are", "unconstrained sites are", "may be a number"),
)


def assert_plain_refusal(error: Exception, *names: str) -> None:
    """Require an error that names an option and says what to do."""
    text = str(error)
    assert any(part in text for part in ADVICE), text
    assert any(name in text for name in names), f"{text!r} names none of {names}"
    count_refusal(error)


# -- schedules


@given(schedules, st.lists(steps, min_size=1, max_size=5))
def test_a_schedule_of_junk(made, at):
    kind, arguments = made
    try:
        schedule = kind(**arguments)
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, kind.__name__)
        return
    values = []
    for k in at:
        try:
            values.append(schedule(k))
        except ValueError as error:
            assert "exceeds the range of a float" in str(error) and kind is aeb.Geometric
            count_refusal(error)
            return
    assert all(isinstance(value, Real) and not math.isnan(value) for value in values)
    assert (
        [schedule(k) for k in at] == values == [pickle.loads(pickle.dumps(schedule))(k) for k in at]
    )


@given(
    st.floats(1e-3, 1e3), st.floats(0.0, 1e4), st.floats(0.0, 3.0), st.floats(0.0, 1.0), st.data()
)
def test_schedules_of_numbers_that_make_sense_are_positive_and_fall_or_rise(a, b, c, d, data):
    k = data.draw(st.integers(1, 10**6))
    falling = aeb.Polynomial(a, b, c)
    assert 0.0 < falling(k + 1) <= falling(k)
    rate = data.draw(st.floats(0.99, 1.01))
    geometric = aeb.Geometric(a, rate, every=10**4)
    assert (geometric(k + 1) - geometric(k)) * (rate - 1.0) >= 0.0 < geometric(k)
    cycle = aeb.Cyclical(a, data.draw(st.integers(1, 100)))
    assert 0.0 <= cycle(k) <= a and cycle(k + cycle.period) == cycle(k)
    share = aeb.PruningSchedule(d, data.draw(st.floats(0.0, 0.999)), a)
    assert 0.0 <= share(k) <= share(k + 1) <= d


# -- the parts of a kernel

STEP, INNER = {"step_size": 1e-3}, {"inner": aeb.SGLD(1e-3)}
# Valid arguments of each transition, and its options.
TRANSITIONS = {
    transitions.SGNHT: (STEP, ["step_size", "friction", "coupling"]),
    transitions.BAOAB: (STEP, ["step_size", "friction"]),
    transitions.PSGLD: (STEP, ["step_size", "decay", "damping", "correction", "adapt_until"]),
    transitions.HMC: (STEP, ["step_size", "leapfrogs", "jitter"]),
    transitions.CyclicalSGMCMC: (
        {"inner": aeb.SGLD(aeb.Cyclical(1e-3, 10))},
        ["inner", "exploration"],
    ),
    transitions.SVRG: ({**INNER, "every": 2}, ["inner", "every"]),
    transitions.ReplicaExchange: (
        INNER,
        ["inner", "temperature_ratio", "step_size_ratio", "swap_every", "energies"]
        + ["variance_every"],
    ),
    transitions.ContourSGLD: (
        {**STEP, "energies": (0.0, 1.0)},
        ["step_size", "energies", "bins", "zeta", "weight"],
    ),
}


@given(st.fixed_dictionaries({"step_size": junk, "friction": junk, "gradient_noise": junk}))
def test_a_transition_of_junk(options):
    for kind in (aeb.SGLD, aeb.SGHMC):
        given = {"step_size": options["step_size"]} if kind is aeb.SGLD else options
        try:
            kind(**given)
        except (TypeError, ValueError) as error:
            assert_plain_refusal(error, *options, "Constant")


@given(st.sampled_from(list(TRANSITIONS)), st.data())
def test_another_transition_of_junk(kind, data):
    right, names = TRANSITIONS[kind]
    name = data.draw(st.sampled_from(names))
    options = {**right, name: data.draw(junk)}
    try:
        made = kind(**options)
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, *options, "Constant", "low")
        return
    assert made == kind(**options) and hash(made) == hash(kind(**options))


@given(
    st.fixed_dictionaries({"weight": junk, "initial_inclusion": junk, "initial_penalty": junk}),
)
def test_an_adaptation_of_junk(options):
    try:
        adaptation = aeb.StochasticApproximation(**options)
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, *options, "Constant", "stochastic-approximation weight")
        return
    assert adaptation == aeb.StochasticApproximation(**options)


SITES = {"a": (7, 3), "b": (5,)}
prunings = st.sampled_from([MagnitudePruning, ProbabilityPruning, UnitPruning])
pruning_options = st.fixed_dictionaries(
    {"sparsity": st.one_of(junk, st.floats(0.0, 1.0))},
    optional={
        "scope": st.one_of(junk, st.sampled_from(["layer", "global"])),
        "every": st.one_of(junk, st.integers(1, 3)),
        "freeze": st.one_of(junk, st.booleans()),
        "sites": st.one_of(junk, st.just("*"), st.lists(st.sampled_from(["a", "b", "x", "*"]))),
    },
)


@given(prunings, pruning_options, st.integers(0, 2**32))
def test_a_pruning_of_junk(kind, options, seed):
    try:
        pruner = Pruner(kind(**options), make_structure(SITES, {"c": (4,)}))
        assume(not callable(options["sparsity"]))
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, kind.__name__, "sparsity", "nothing to prune", *options)
        return
    torch.manual_seed(seed)
    for k in (1, 2, 6):
        after = prune_once(pruner, torch.randn(30), k, lambda: torch.rand(26))
        assert after.isfinite().all()


@given(
    prunings, st.sampled_from(["layer", "global"]), st.booleans(), st.floats(0.0, 1.0), st.data()
)
def test_any_share_is_met_or_refused(kind, scope, freeze, share, data):
    values = st.floats(-5.0, 5.0, width=32).filter(bool)
    weights = torch.tensor(data.draw(st.lists(values, min_size=30, max_size=30)))
    try:
        pruner = Pruner(kind(share, scope, freeze), make_structure(SITES, {"c": (4,)}))
    except ModelError as error:
        assert round(30 * share) > 26
        count_refusal(error)
        return
    after = prune_once(pruner, weights.clone(), 1, lambda: weights[:26].sigmoid())
    zeros = int((after == 0.0).sum())
    wanted = round(30 * share)
    # Units are met to one of each site, of 3 weights and of 1.
    assert abs(zeros - wanted) <= (4 if kind is UnitPruning else 0)
    assert torch.equal(after[after != 0.0], weights[after != 0.0])


# -- the kernel

KERNEL = {
    "transition": st.one_of(not_numbers, st.just(aeb.SGLD(1e-4))),
    "adaptation": st.one_of(junk, st.just(aeb.StochasticApproximation(0.5))),
    "inverse_temperature": junk,
    "steps_per_draw": st.one_of(junk, st.integers(1, 3)),
    "pruning": st.one_of(junk, st.just(MagnitudePruning(0.5))),
    "init_strategy": not_numbers,
    "save": st.one_of(junk, st.lists(st.sampled_from(["beta", "delta", "beta_rho", "x"]))),
    "links": st.one_of(
        junk,
        st.dictionaries(
            st.sampled_from(["beta", "x", 1]),
            st.one_of(
                junk,
                st.dictionaries(
                    st.sampled_from(["delta", "sigma", "v0", 2]),
                    st.one_of(st.sampled_from(["delta", "sigma2", "beta", 3]), not_numbers),
                    max_size=2,
                ),
            ),
            max_size=2,
        ),
    ),
    "freeze_after_warmup": junk,
    "minibatches": st.one_of(junk, st.sampled_from(["permutation", "replacement"])),
    "noise": st.one_of(junk, st.sampled_from(["normal", "three-point"])),
    "seed": junk,
    "data_parallel": junk,
    "compile": not_numbers,
}
NAMES = [*KERNEL, "step_size", "StochasticApproximation", "MagnitudePruning"]


@fewer_examples(1)
@given(st.sampled_from(list(KERNEL)), st.data())
def test_a_kernel_with_an_option_of_junk(name, data):
    """All other options are valid, so that the junk is reached wherever it is checked."""
    value = data.draw(KERNEL[name])
    usual = {"adaptation": aeb.StochasticApproximation(0.5), "transition": aeb.SGLD(1e-4)}
    assume(not (callable(value) and name in ("inverse_temperature", "init_strategy")))
    assume(not (name == "steps_per_draw" and isinstance(value, (int, np.integer)) and value > 1e3))
    try:
        kernel = aeb.AEBKernel(sparse_regression, **{**usual, name: value})
        run = aeb.MCMC(kernel, 2, 1, disable_progbar=True)
        run.run(X, Y)
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, name, "SSGL site 'beta'")
        return
    assert all(draws.isfinite().all() for draws in run.get_samples().values())


@given(st.dictionaries(st.sampled_from(list(KERNEL)), junk, min_size=2))
def test_a_kernel_of_junk(options):
    try:
        aeb.AEBKernel(sparse_regression, **{"transition": aeb.SGLD(1e-4), **options})
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, *NAMES, "Constant")


class Numbers:
    """A schedule that returns anything."""

    def __init__(self, value) -> None:
        self.value = value

    def __call__(self, k: int):
        return self.value


@fewer_examples(2)
@given(st.sampled_from(["step_size", "inverse_temperature", "weight", "sparsity"]), junk)
def test_a_schedule_that_gives_junk(name, value):
    schedules = {"step_size": 1e-4, "inverse_temperature": 1.0, "weight": 0.5, "sparsity": 0.2}
    schedules[name] = Numbers(value)
    kernel = aeb.AEBKernel(
        sparse_regression,
        aeb.SGLD(schedules["step_size"]),
        aeb.StochasticApproximation(schedules["weight"]),
        schedules["inverse_temperature"],
        pruning=MagnitudePruning(schedules["sparsity"]),
        seed=0,
    )
    run = aeb.MCMC(kernel, 1, 0, disable_progbar=True)
    try:
        run.run(X, Y)
    except aeb.NonFiniteError as error:  # a valid number that is enormous
        count_refusal(error)
    except ValueError as error:
        assert_plain_refusal(error, name, "stochastic-approximation weight", "sparsity")
    else:
        assert all(draws.isfinite().all() for draws in run.get_samples().values())


# -- a run

RUN = {
    "num_samples": st.one_of(junk, st.integers(1, 2)),
    "warmup_steps": st.one_of(junk, st.integers(0, 2)),
    "num_chains": st.one_of(junk, st.integers(1, 2)),
    "thinning": st.one_of(junk, st.integers(1, 2)),
    "every": junk,
    "chain_method": st.one_of(junk, st.sampled_from(["sequential", "vectorized"])),
    "hook_fn": not_numbers,
    "mp_context": not_numbers,
    "initial_params": not_numbers,
    "save_params": st.one_of(not_numbers, st.lists(st.sampled_from(["beta", "x"]))),
    "trace": not_numbers,
    "checkpoint": not_numbers,
    "kernel": not_numbers,
}


@given(st.sampled_from(list(RUN)), st.data())
def test_a_run_with_an_option_of_junk(name, data):
    value = data.draw(RUN[name])
    assume(not (name in ("trace", "checkpoint") and isinstance(value, str) and value))
    assume(not (name == "hook_fn" and callable(value)))
    few = ("num_samples", "warmup_steps", "num_chains", "thinning")
    assume(not (name in few and isinstance(value, (int, np.integer)) and value > 5))
    kernel = aeb.AEBKernel(sparse_regression, aeb.SGLD(1e-4), seed=0)
    options = {"kernel": kernel, "num_samples": 2, "warmup_steps": 1, "chain_method": "sequential"}
    try:
        run = aeb.MCMC(**{**options, "disable_progbar": True, name: value})
        run.run(X, Y)
    except (TypeError, ValueError) as error:
        assert_plain_refusal(error, name, "save")
        return
    assert all(draws.isfinite().all() for draws in run.get_samples().values())


@given(not_numbers)
def test_a_model_that_is_none(value):
    assume(not callable(value))
    with pytest.raises(TypeError, match="model is .*, expected a Pyro model") as info:
        aeb.AEBKernel(value, aeb.SGLD(1e-4))
    count_refusal(info.value)
