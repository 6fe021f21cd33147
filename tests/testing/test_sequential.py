# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The false-alarm rate of sequential tests, by calculation and by simulation, and their power.
"""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_aeb.testing import SequentialPlan, check_law, check_mean, check_same_law, sequential_test
from pyro_aeb.testing.sequential import STANDARD


def normal_draws(mean=0.0, sd=1.0):
    return lambda size, rng: mean + sd * rng.standard_normal(size)


def uniform_p_value(size, rng):
    """Return the p-value of an exact test under the null hypothesis."""
    return rng.uniform()


# -- the calculation


@pytest.mark.parametrize(
    "plan",
    [STANDARD, SequentialPlan(0.05, 3), SequentialPlan(1e-3, 1), SequentialPlan(0.2, 7)],
    ids=repr,
)
def test_the_levels_add_up_to_the_false_alarm_rate(plan):
    # P(fails in round i) = P(i - 1 rounds ask for another) * level i, for uniform p-values.
    total = sum(plan.again**i * level for i, level in enumerate(plan.levels))
    assert total == pytest.approx(plan.false_alarm, rel=1e-12)
    assert plan.levels[-1] == pytest.approx(plan.again)
    assert list(plan.levels) == sorted(plan.levels)


def test_p_values_decide():
    plan = SequentialPlan(1e-6, 4)
    for values, passed in {
        (0.5,): True,  # no evidence
        (1e-8,): False,  # overwhelming evidence
        (1e-3, 0.5): True,
        (1e-3, 1e-6): False,
        (1e-3, 1e-3, 1e-3, 1e-3): False,
        (1e-2, 1e-2, 1e-2, 0.03): True,
    }.items():
        rest = iter(values)
        verdict = sequential_test(lambda size, rng, rest=rest: next(rest), 10, plan=plan)
        assert verdict.passed == passed and verdict.p_values == values
        assert verdict.sizes == tuple(10 * 4**i for i in range(len(values)))


def test_rounds_draw_fresh_samples():
    seen = []
    sequential_test(
        lambda size, rng: seen.append(rng.uniform()) or 1e-3, 1, plan=SequentialPlan(1e-9, 4)
    )
    assert len(set(seen)) == len(seen) > 1


def test_the_same_seed_gives_the_same_verdict():
    assert sequential_test(uniform_p_value, 1, seed=3) == sequential_test(
        uniform_p_value, 1, seed=3
    )
    assert sequential_test(uniform_p_value, 1, seed=3) != sequential_test(
        uniform_p_value, 1, seed=4
    )


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.5])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match="expected a number in"):
        sequential_test(lambda size, rng: p, 10)


def test_a_plan_without_sense_is_refused():
    for plan in ((0.0, 4, 4), (1.0, 4, 4), (0.1, 0, 4), (0.1, 4, 0)):
        with pytest.raises(ValueError, match="expected a false_alarm in"):
            SequentialPlan(*plan)


# -- by simulation: seeds 0, 1, 2, ..., the binomial bounds exceeded with probability 1e-6 ---------


def count_alarms(check, number):
    found = 0
    for seed in range(number):
        try:
            check(seed)
        except AssertionError:
            found += 1
    return found


def most_alarms(number, rate):
    """Return the number of alarms that is exceeded with probability 1e-6."""
    return stats.binom.isf(1e-6, number, rate)


def test_the_false_alarm_rate_under_uniform_p_values():
    number, plan = 20_000, SequentialPlan(0.05, 4)
    found = sum(
        not sequential_test(uniform_p_value, 1, seed, plan).passed for seed in range(number)
    )
    # It is 0.05 exactly, so there are not fewer either.
    assert stats.binom.isf(1 - 1e-6, number, 0.05) <= found <= most_alarms(number, 0.05)


LOOSE = SequentialPlan(0.05, 3, growth=2)
NULL = {
    "law": lambda seed: check_law(normal_draws(), stats.norm.cdf, 200, seed, LOOSE),
    "two samples": lambda seed: check_same_law(normal_draws(), normal_draws(), 200, seed, LOOSE),
    "mean": lambda seed: check_mean(normal_draws(2.0), 2.0, 0.0, 200, seed, LOOSE),
    "mean at the tolerance": lambda seed: check_mean(normal_draws(2.1), 2.0, 0.1, 200, seed, LOOSE),
    "three means": lambda seed: check_mean(
        lambda size, rng: rng.standard_normal((size, 3)), [0.0] * 3, 0.0, 200, seed, LOOSE
    ),
    "mean of squares": lambda seed: check_mean(
        lambda size, rng: rng.standard_normal(size) ** 2, 1.0, 0.0, 1000, seed, LOOSE
    ),
}


@pytest.mark.parametrize("name", NULL)
def test_the_false_alarm_rate_of_every_check(name):
    number = 1000
    found = count_alarms(NULL[name], number)
    assert found <= most_alarms(number, 0.05)
    if name != "two samples":  # whose p-values are discrete, and larger
        assert found >= stats.binom.isf(1 - 1e-6, number, 0.05)


# Alternatives that the standard plan, with its one false alarm in a million, must detect. The
# Kolmogorov distance of N(0, 1.2^2) from N(0, 1) is 0.044, and samples grow to 128,000.
FALSE = {
    "law": lambda seed: check_law(normal_draws(sd=1.2), stats.norm.cdf, seed=seed),
    "two samples": lambda seed: check_same_law(
        normal_draws(sd=1.2), normal_draws(), size=10_000, seed=seed
    ),
    "mean": lambda seed: check_mean(normal_draws(0.3), 0.0, seed=seed),
    "mean off the tolerance": lambda seed: check_mean(normal_draws(0.4), 0.0, 0.1, seed=seed),
    "variance": lambda seed: check_mean(
        lambda size, rng: 1.2 * rng.standard_normal(size) ** 2, 1.0, size=4000, seed=seed
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_the_power_of_every_check(name):
    # With power 0.99 at least 85 of 100 detect it, except with probability 1e-6 (binomial: 91).
    assert count_alarms(FALSE[name], 100) >= stats.binom.isf(1 - 1e-6, 100, 0.99)


def test_an_alarm_says_what_was_found():
    with pytest.raises(
        AssertionError,
        match=r"mean \[1\..*\]: found p = .* of 1000 \(false-alarm rate 1e-06\), expected 0.0 with",
    ):
        check_mean(normal_draws(1.0), 0.0)


def test_constant_draws_are_no_trouble():
    check_mean(lambda size, rng: np.full(size, 2.0), 2.0)
    with pytest.raises(AssertionError):
        check_mean(lambda size, rng: np.full(size, 2.0), 2.1)


def test_draws_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="are its draws finite"):
        check_mean(lambda size, rng: np.full(size, np.nan), 0.0)
