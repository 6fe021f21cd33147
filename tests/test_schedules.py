# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Schedules: step k = 1, 2, ... to a float."""

import math
import pickle
import re

import numpy as np
import pytest
import torch

from pyro_aeb.schedules import (
    Constant,
    Cyclical,
    Geometric,
    Piecewise,
    Polynomial,
    PruningSchedule,
    Schedule,
    as_schedule,
)

ONE_OF_EACH = [
    Constant(0.25),
    Polynomial(10.0, 1000.0, 0.7),
    Geometric(2.0, 1.5, every=3),
    Piecewise(2e-9, {35_000: 0.1, 45_000: 0.1}),
    Cyclical(1e-3, 50),
    PruningSchedule(0.9, damping=0.99, period=50),
]
ids = [type(schedule).__name__ for schedule in ONE_OF_EACH]


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=ids)
class TestEverySchedule:
    def test_is_a_schedule_of_floats(self, schedule):
        assert isinstance(schedule, Schedule)
        for k in (1, 2, 1000):
            assert isinstance(schedule(k), float)
            assert schedule(k) >= 0.0

    def test_depends_on_the_step_alone(self, schedule):
        forwards = [schedule(k) for k in range(1, 200)]
        backwards = [schedule(k) for k in range(199, 0, -1)]
        assert forwards == backwards[::-1]

    def test_pickles(self, schedule):
        copy = pickle.loads(pickle.dumps(schedule))
        assert copy == schedule and hash(copy) == hash(schedule)
        assert copy(77) == schedule(77)

    def test_prints_as_the_call_that_makes_it(self, schedule):
        assert eval(repr(schedule)) == schedule

    def test_is_frozen(self, schedule):
        name = next(iter(schedule.__dataclass_fields__))
        with pytest.raises(AttributeError):
            setattr(schedule, name, 1.0)


def test_constant():
    assert [Constant(0.25)(k) for k in (1, 2, 10**9)] == [0.25] * 3
    assert Constant(0.0)(1) == 0.0


def test_polynomial_is_scale_over_offset_plus_step_to_the_power():
    assert Polynomial(3.0)(4) == 3.0 / 4.0
    assert Polynomial(10.0, 1000.0, 0.7)(24) == pytest.approx(10.0 / 1024.0**0.7, rel=1e-15)
    # From k = 1 and without an offset the first value is the scale itself.
    assert Polynomial(1e-3, power=1 / 3)(1) == 1e-3
    assert Polynomial(1e-3, power=1 / 3)(8) == pytest.approx(0.5e-3, rel=1e-15)
    assert Polynomial(0.2, power=0.0)(10**6) == 0.2


def test_geometric_multiplies_every_given_number_of_steps():
    # "every" steps at the first value, then "every" at the next: an epoch each.
    assert [Geometric(2.0, 3.0, every=2)(k) for k in range(1, 7)] == [2, 2, 6, 6, 18, 18]
    assert [Geometric(1.0, 0.5)(k) for k in (1, 2, 3)] == [1.0, 0.5, 0.25]


def test_geometric_beyond_floats_names_the_step_and_the_remedy():
    with pytest.raises(ValueError, match=r"exceeds the range of a float at step 2000; use a rate"):
        Geometric(1.0, 2.0)(2000)


def test_piecewise_holds_each_factor_from_its_step_on():
    schedule = Piecewise(8.0, {20: 0.25, 10: 0.5})
    assert [schedule(k) for k in (1, 9, 10, 19, 20, 10**6)] == [8.0, 8.0, 4.0, 4.0, 1.0, 1.0]
    # The order of the dictionary is no part of the schedule.
    assert schedule == Piecewise(8.0, {10: 0.5, 20: 0.25})
    assert repr(schedule) == "Piecewise(initial=8.0, factors={10: 0.5, 20: 0.25})"


def test_piecewise_keeps_a_copy_of_its_factors():
    factors = {10: 0.5}
    schedule = Piecewise(8.0, factors)
    factors[1] = 0.0
    assert schedule(1) == 8.0


def test_cyclical_starts_every_cycle_at_the_initial_value():
    schedule = Cyclical(0.8, 4)
    # (initial / 2) (1 + cos(pi t)) at t = 0, 1/4, 1/2, 3/4 of the cycle.
    cycle = [0.4 * (1 + math.cos(math.pi * t)) for t in (0.0, 0.25, 0.5, 0.75)]
    assert [schedule(k) for k in range(1, 9)] == pytest.approx(cycle * 2, rel=1e-15)
    assert min(cycle) > 0.0
    assert [Cyclical(0.8, 1)(k) for k in (1, 2)] == [0.8, 0.8]


def test_pruning_closes_a_share_of_the_gap_to_its_target_a_period():
    # 0.8 (1 - 0.25^{k/2}): half a period halves what is missing.
    schedule = PruningSchedule(0.8, damping=0.25, period=2)
    assert [schedule(k) for k in (1, 2, 3, 4)] == pytest.approx([0.4, 0.6, 0.7, 0.75], rel=1e-15)
    # The published setting: 1 - 0.99^{1/50} = 1 - exp(ln(0.99) / 50) of the target at first.
    first = -math.expm1(math.log(0.99) / 50)
    assert PruningSchedule(0.9)(1) == pytest.approx(0.9 * first, rel=1e-10)
    assert PruningSchedule(0.9)(50) == pytest.approx(0.9 * 0.01, rel=1e-13)
    assert PruningSchedule(0.9)(10**7) == 0.9
    assert [PruningSchedule(0.9, damping=0.0)(k) for k in (1, 2)] == [0.9, 0.9]
    assert PruningSchedule(0.0)(5) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), "Constant: value is nan, expected a finite number"),
        (lambda: Constant(math.inf), "Constant: value is inf, expected a finite number"),
        (lambda: Polynomial(0.0), "Polynomial: scale is 0.0, expected a finite number > 0"),
        (lambda: Polynomial(-1.0), "scale is -1.0, expected a finite number > 0"),
        (lambda: Polynomial(1.0, offset=-1.0), "offset is -1.0, expected a finite number >= 0"),
        (lambda: Polynomial(1.0, power=-0.5), "power is -0.5, expected a finite number >= 0"),
        (lambda: Polynomial(1.0, power=math.nan), "power is nan, expected a finite number >= 0"),
        (lambda: Geometric(0.0, 2.0), "initial is 0.0, expected a finite number > 0"),
        (lambda: Geometric(1.0, 0.0), "rate is 0.0, expected a finite number > 0"),
        (lambda: Geometric(1.0, 2.0, every=0), "every is 0, expected a number in [1, inf]"),
        (lambda: Piecewise(math.nan, {}), "initial is nan, expected a finite number"),
        (lambda: Piecewise(1.0, {5: 0.0}), "a factor is 0.0, expected a finite number > 0"),
        (lambda: Piecewise(1.0, {5: math.inf}), "a factor is inf, expected a finite number > 0"),
        (lambda: Cyclical(0.0, 5), "initial is 0.0, expected a finite number > 0"),
        (lambda: Cyclical(1.0, 0), "period is 0, expected a number in [1, inf]"),
        (lambda: PruningSchedule(90), "target is 90, expected a number in [0, 1]; 90 % is 0.9"),
        (lambda: PruningSchedule(-0.1), "target is -0.1, expected a number in [0, 1]"),
        (lambda: PruningSchedule(math.nan), "target is nan, expected a number in [0, 1]"),
        (lambda: PruningSchedule(0.9, damping=1.0), "damping is 1.0, expected a number in [0, 1)"),
        (
            lambda: PruningSchedule(0.9, damping=-0.5),
            "damping is -0.5, expected a number in [0, 1)",
        ),
        (lambda: PruningSchedule(0.9, period=0), "period is 0, expected a finite number > 0"),
        (
            lambda: PruningSchedule(0.9, period=math.inf),
            "period is inf, expected a finite number > 0",
        ),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("number", [1, 0.5, np.float64(0.5), np.float32(0.5)])
def test_a_number_stands_for_a_constant(number):
    assert as_schedule(number, "step_size") == Constant(float(number))


def test_a_schedule_and_any_function_of_the_step_pass_unchanged():
    polynomial = Polynomial(1.0)
    assert as_schedule(polynomial, "step_size") is polynomial
    assert as_schedule(math.sqrt, "step_size") is math.sqrt


@pytest.mark.parametrize("value", ["0.1", None, [0.1], torch.tensor(0.1)])
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"step_size is .* expected a number or a schedule such as"):
        as_schedule(value, "step_size")
