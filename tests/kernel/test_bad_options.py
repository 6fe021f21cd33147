# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What bad options get: an error at once that says what was found, what was expected and what to
do; never a silent wrong answer, never a lost run.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import P, sparse_classification, sparse_regression
from pyro.infer import MCMC
from refusals import ADAPTATION, X, Y, raises_with, run_model

from pyro_aeb import (
    SGHMC,
    SGLD,
    AEBKernel,
    Constant,
    Cyclical,
    Geometric,
    Piecewise,
    Polynomial,
    StochasticApproximation,
)
from pyro_aeb.transitions import BAOAB, HMC, PSGLD, SGNHT, TunedBAOAB

# Options of the kernel


@pytest.mark.parametrize(
    "options, error, parts",
    [
        ({"model": "model"}, TypeError, ["model is 'model', expected a Pyro model"]),
        ({"model": None}, TypeError, ["model is None, expected a Pyro model"]),
        ({"transition": 1e-3}, TypeError, ["transition is 0.001, expected", "SGLD(step_size="]),
        ({"transition": SGLD}, TypeError, ["transition is", "expected", "SGLD(step_size="]),
        ({"adaptation": 0.5}, TypeError, ["adaptation is 0.5, expected StochasticApproximation("]),
        (
            {"adaptation": StochasticApproximation},
            TypeError,
            ["adaptation is", "expected StochasticApproximation(weight), Gibbs() or None"],
        ),
        ({"steps_per_draw": 0}, ValueError, ["steps_per_draw is 0, expected an integer"]),
        ({"steps_per_draw": -3}, ValueError, ["steps_per_draw is -3, expected an integer"]),
        ({"steps_per_draw": 1.5}, ValueError, ["steps_per_draw is 1.5, expected an integer"]),
        ({"inverse_temperature": "1"}, TypeError, ["inverse_temperature is '1', expected"]),
        ({"inverse_temperature": None}, TypeError, ["inverse_temperature is None, expected"]),
        ({"inverse_temperature": math.nan}, ValueError, ["expected a finite number"]),
        ({"minibatches": "epoch"}, ValueError, ["minibatches is 'epoch'", "'permutation'"]),
        ({"init_strategy": 0.0}, TypeError, ["init_strategy is 0.0, expected", "init_to_"]),
        ({"seed": "0"}, TypeError, ["seed is '0', expected an integer"]),
        ({"seed": 1.5}, TypeError, ["seed is 1.5, expected an integer"]),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_options_of_the_kernel(options, error, parts):
    options = {"model": sparse_regression, "transition": SGLD(1e-3), **options}
    with raises_with(*parts, error=error):
        AEBKernel(**options)


@pytest.mark.parametrize("steps", [2, np.int64(2)], ids=repr)
def test_any_integer_will_do_for_steps_per_draw(steps):
    run_model(sparse_regression, X, Y, steps_per_draw=steps)


@pytest.mark.parametrize(
    "make, error, parts",
    [
        (lambda: SGLD("fast"), TypeError, ["step_size is 'fast', expected a number or a schedule"]),
        (lambda: SGLD(None), TypeError, ["step_size is None, expected a number or a schedule"]),
        (lambda: SGLD(math.inf), ValueError, ["expected a finite number"]),
        (lambda: SGHMC(1e-3, friction=0.0), ValueError, ["friction is 0.0", "(0, 1]", "0.9"]),
        (lambda: SGHMC(1e-3, friction=1.1), ValueError, ["friction is 1.1", "(0, 1]"]),
        (
            lambda: SGHMC(1e-3, friction=0.1, gradient_noise=0.2),
            ValueError,
            ["gradient_noise is 0.2", "[0, 0.1]", "negative variance", "raise the friction"],
        ),
        (lambda: SGHMC(1e-3, gradient_noise=-0.1), ValueError, ["gradient_noise is -0.1"]),
        (lambda: StochasticApproximation(1.5), ValueError, ["1.5", "expected", "[0, 1]"]),
        (lambda: StochasticApproximation(-0.1), ValueError, ["-0.1", "expected", "[0, 1]"]),
        (lambda: StochasticApproximation(None), TypeError, ["weight is None, expected"]),
        (
            lambda: StochasticApproximation(0.5, initial_inclusion=2.0),
            ValueError,
            ["initial_inclusion=2.0", "expected initial_inclusion in [0, 1]"],
        ),
        (
            lambda: StochasticApproximation(0.5, initial_penalty=0.0),
            ValueError,
            ["initial_penalty=0.0", "expected", "initial_penalty > 0"],
        ),
        (lambda: Polynomial(-1.0), ValueError, ["Polynomial: scale is -1.0", "> 0"]),
        (lambda: Geometric(1.0, 1.1, every=0), ValueError, ["every is 0", "[1, inf]"]),
        (lambda: Cyclical(1.0, 0), ValueError, ["period is 0", "[1, inf]"]),
    ],
)
def test_options_of_the_parts(make, error, parts):
    with raises_with(*parts, error=error):
        make()


@pytest.mark.parametrize("value", [0.0, -1e-3])
def test_a_step_size_or_temperature_that_is_not_positive(value):
    """When it is given, not at the first step."""
    for number in (value, Constant(value)):
        with raises_with(
            f"step_size is {value} at step 1, expected a finite number > 0", error=ValueError
        ):
            SGLD(number)
        with raises_with(
            f"inverse_temperature is {value} at step 1, expected a finite number > 0",
            error=ValueError,
        ):
            AEBKernel(sparse_regression, SGLD(1e-3), inverse_temperature=number)


@pytest.mark.parametrize("kind", [SGHMC, BAOAB, SGNHT, PSGLD, HMC, TunedBAOAB])
def test_no_transition_takes_a_negative_step_size(kind):
    for step_size in (-1e-3, Piecewise(-1e-3, {100: 0.1})):
        with raises_with("step_size is -0.001 at step 1, expected", "> 0", error=ValueError):
            kind(step_size)


def test_a_schedule_that_turns_negative_loses_no_draws():
    kernel = AEBKernel(sparse_regression, SGLD(lambda k: 1e-3 * (4.5 - k)), ADAPTATION, seed=0)
    with raises_with(
        "step_size is -0.0005 at step 5, expected a finite number > 0", error=ValueError
    ):
        MCMC(kernel, 100, 0, disable_progbar=True).run(X, Y)
    assert kernel.recover()["beta"].shape == (4, P)


def test_a_weight_schedule_above_one():
    weight = Polynomial(10.0, 0.0, 0.7)  # 10 at the first step
    with raises_with(
        "is 10.0 at step 1", "[0, 1]", "larger offset", "Polynomial", error=ValueError
    ):
        run_model(sparse_regression, X, Y, adaptation=StochasticApproximation(weight))


def test_a_schedule_beyond_the_range_of_a_float():
    with raises_with(
        "Geometric", "exceeds the range", "at step 2", "rate closer to 1", error=ValueError
    ):
        run_model(sparse_classification, X, Y, inverse_temperature=Geometric(1e300, 1e10))


def test_first_inclusion_probabilities_that_fit_no_site():
    adaptation = StochasticApproximation(0.5, initial_inclusion={"beta": torch.full([P + 1], 0.5)})
    with raises_with("initial_inclusion", f"({P + 1},)", "expected", f"({P},)"):
        run_model(sparse_regression, X, Y, adaptation=adaptation)
