# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Statistical tests that almost never fail by chance.

In a suite of hundreds of tests one of level 5 % fails every day, and one of level 1e-6 needs huge
samples to detect anything. A sequential test [1] avoids both: it fails at once on overwhelming
evidence, passes at once on none, and draws a fresh, larger sample in between.

With a bound :math:`\alpha` on false alarms and at most k rounds, let :math:`\beta_1 = \alpha / k`,
:math:`\gamma = \beta_1^{1/k}` and :math:`\beta_{i+1} = \beta_i / \gamma`. Round i has a p-value p:

- :math:`p \le \beta_i`: the test fails.
- :math:`p > \gamma + \beta_i`: it passes.
- otherwise round i + 1 draws a fresh sample, :math:`\Delta` times as large. After round k, where
  :math:`\beta_k = \gamma`, it passes.

*False alarms.* If the null hypothesis holds, each p is uniform (or larger), and independent of the
others as its sample is fresh. A round is followed by another with probability at most
:math:`\gamma`, so round i is reached with probability at most :math:`\gamma^{i-1}` and then fails
with probability at most :math:`\beta_i = (\alpha / k) \gamma^{-(i-1)}`: at most :math:`\alpha / k`
for every round, :math:`\alpha` in all. For uniform p these are equalities.

*Cost.* With :math:`\alpha = 10^{-6}` and k = 4, :math:`\gamma` is 0.022: of 45 correct runs 44 need
only the first sample.

*Seeds.* A test's random numbers come from its seed, so its result is always the same. The rate
above is that over seeds: no seed has been chosen because it passes.

**References**

[1] Axel Gandy, James Scott (2020), "Unit testing for MCMC and other Monte Carlo methods",
    arXiv 2001.06465.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

PValue = Callable[[int, np.random.Generator], float]
"""Returns the p-value of a fresh sample, given its size and a random generator."""

Draw = Callable[[int, np.random.Generator], Any]
"""Returns independent draws, shape (size,), given their number and a random generator."""


@dataclass(frozen=True)
class SequentialPlan:
    r"""
    Parameters of a sequential test.

    :param float false_alarm: bound :math:`\alpha` on the probability of failing by chance.
    :param int rounds: largest number k of rounds.
    :param int growth: factor :math:`\Delta` by which every sample is larger than the previous one.
    :raises ValueError: if a parameter is out of range.
    """

    false_alarm: float = 1e-6
    rounds: int = 4
    growth: int = 4

    def __post_init__(self) -> None:
        if not (0.0 < self.false_alarm < 1.0 and self.rounds >= 1 and self.growth >= 1):
            raise ValueError(
                f"{self!r}: expected a false_alarm in (0, 1), and rounds and growth of at least 1"
            )

    @property
    def again(self) -> float:
        r"""The probability :math:`\gamma` that a correct sampler needs one more round."""
        return float((self.false_alarm / self.rounds) ** (1.0 / self.rounds))

    @property
    def levels(self) -> tuple[float, ...]:
        r"""The levels :math:`\beta_1, \ldots, \beta_k`, at or below which a p-value fails."""
        return tuple(self.false_alarm / self.rounds / self.again**i for i in range(self.rounds))


STANDARD = SequentialPlan()
"""At most one false alarm in a million."""


@dataclass(frozen=True)
class SequentialResult:
    """
    The result of a sequential test.

    :param bool passed: whether the test passed.
    :param p_values: p-value of every round.
    :param sizes: sample size of every round.
    :param SequentialPlan plan: parameters of the test.
    """

    passed: bool
    p_values: tuple[float, ...]
    sizes: tuple[int, ...]
    plan: SequentialPlan

    def __str__(self) -> str:
        rounds = ", ".join(
            f"p = {p:.3g} of {size}" for p, size in zip(self.p_values, self.sizes, strict=True)
        )
        return f"{rounds} (false-alarm rate {self.plan.false_alarm:g})"


def sequential_test(
    p_value: PValue, size: int, seed: int = 0, plan: SequentialPlan = STANDARD
) -> SequentialResult:
    """
    Run a sequential test.

    :param p_value: function that draws a fresh sample and returns its p-value.
    :param int size: size of the first sample.
    :param int seed: seed of the random numbers.
    :param SequentialPlan plan: false-alarm rate and rounds.
    :raises ValueError: if a p-value is not in [0, 1].
    """
    generators = np.random.SeedSequence(seed).spawn(plan.rounds)
    p_values: list[float] = []
    sizes: list[int] = []
    passed = True
    for level, words in zip(plan.levels, generators, strict=True):
        sizes.append(size)
        p_values.append(float(p_value(size, np.random.default_rng(words))))
        if not 0.0 <= p_values[-1] <= 1.0:
            raise ValueError(
                f"the p-value of a sample of {size} is {p_values[-1]}, expected a number in [0, 1]"
                "; are its draws finite?"
            )
        passed = p_values[-1] > level
        if not passed or p_values[-1] > plan.again + level:
            break
        size *= plan.growth
    return SequentialResult(passed, tuple(p_values), tuple(sizes), plan)


def check_law(
    draw: Draw,
    cdf: Callable[[Any], Any],
    size: int = 2000,
    seed: int = 0,
    plan: SequentialPlan = STANDARD,
) -> SequentialResult:
    """
    Check that draws have a known distribution function, by the Kolmogorov-Smirnov test.

    :param draw: function that makes independent draws; of Markov chains one per chain, not per
        step.
    :param cdf: distribution function.
    :param int size: size of the first sample.
    :param int seed: seed of the random numbers.
    :param SequentialPlan plan: false-alarm rate and rounds.
    :raises AssertionError: if the test fails.
    """
    result = sequential_test(
        lambda n, rng: stats.kstest(draw(n, rng), cdf).pvalue, size, seed, plan
    )
    return _require(result, "law of the draws", "draws from the given distribution function")


def check_same_law(
    draw: Draw, reference: Draw, size: int = 2000, seed: int = 0, plan: SequentialPlan = STANDARD
) -> SequentialResult:
    """
    Check that draws from two sources have the same law, by the two-sample Kolmogorov-Smirnov test.

    :param draw: function that makes independent draws; of Markov chains one per chain, not per
        step.
    :param reference: function that makes independent draws of the expected law.
    :param int size: size of the first sample of each.
    :param int seed: seed of the random numbers.
    :param SequentialPlan plan: false-alarm rate and rounds.
    :raises AssertionError: if the test fails.
    """
    result = sequential_test(
        lambda n, rng: stats.ks_2samp(draw(n, rng), reference(n, rng)).pvalue, size, seed, plan
    )
    return _require(result, "two samples", "the same law")


def check_mean(
    draw: Draw,
    expected: Any,
    tolerance: Any = 0.0,
    size: int = 1000,
    seed: int = 0,
    plan: SequentialPlan = STANDARD,
) -> SequentialResult:
    """
    Check that the means of independent draws are within a tolerance of their expectation, by
    t-tests.

    The p-values are exact for normal draws; for others they hold as far as the mean is normal,
    which in the far tails takes a thousand draws or more.

    :param draw: function that makes independent draws, shape (size,), or (size, d) of d quantities.
    :param expected: expected means, a number or shape (d,).
    :param tolerance: largest accepted error of a mean, a number or shape (d,).
    :param int size: size of the first sample.
    :param int seed: seed of the random numbers.
    :param SequentialPlan plan: false-alarm rate and rounds.
    :raises AssertionError: if the test fails.
    """
    last: dict[str, Any] = {"mean": None}

    def p_value(n: int, rng: np.random.Generator) -> float:
        values = np.asarray(draw(n, rng), dtype=np.float64)
        values = values.reshape(n, -1)
        if not np.isfinite(values).all():
            return float("nan")
        last["mean"], error = values.mean(0), values.std(0, ddof=1) / np.sqrt(n)
        # For a mean exactly at the tolerance only one tail can fail: with a tolerance the test is
        # one-sided, without one the two sides share the level.
        off = np.abs(last["mean"] - expected) - tolerance
        t = np.divide(off, error, out=np.where(off > 0.0, np.inf, -np.inf), where=error > 0.0)
        sides = np.where(np.asarray(tolerance) > 0.0, 1.0, 2.0)
        return min(1.0, float((sides * stats.t.sf(t, n - 1)).min() * values.shape[1]))

    result = sequential_test(p_value, size, seed, plan)
    expectation = f"{np.asarray(expected)} within {np.asarray(tolerance)}"
    return _require(result, f"mean {last['mean']}", expectation)


def _require(result: SequentialResult, check: str, expected: str) -> SequentialResult:
    if not result.passed:
        raise AssertionError(f"{check}: found {result}, expected {expected}")
    return result
