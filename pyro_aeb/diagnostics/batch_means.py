# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Significance tests on correlated draws, by batch means."""

from __future__ import annotations

import numpy as np
from scipy import stats

from pyro_aeb.testing.linear import Array
from pyro_aeb.testing.monte_carlo import means_of_batches, replicates

BATCHES = 10
"""Number of batches that a series is cut into."""

FALSE_ALARM = 0.01
"""Probability that a check of a healthy run raises a false alarm, over all of its tests."""


def mean_with_error(values: Array) -> tuple[float, float]:
    """Return the mean of a series, shape (draws,) or (chains, draws), and its standard error."""
    means = np.concatenate([means_of_batches(row, BATCHES) for row in np.atleast_2d(values)])
    mean, error = replicates(means)
    return float(mean), float(error)


def error_of_mean(series: Array) -> Array:
    r"""
    Return the Monte Carlo standard error of the mean over all chains and draws,
    :math:`\sqrt{\max(b / 10, c) / C}` for C chains: b is the variance of ten batch means within a
    chain, averaged over the chains, and c the variance of the chains' means. NaN where a chain has
    fewer than 20 draws.

    :param series: values of shape (chains, draws, ...).
    :returns: shape (...).
    """
    chains, draws = series.shape[:2]
    if draws < 2 * BATCHES:
        return np.full(series.shape[2:], np.nan)
    means = np.stack([means_of_batches(chain, BATCHES) for chain in series])
    variance: Array = means.var(1, ddof=1).mean(0) / BATCHES
    if chains > 1:
        variance = np.maximum(variance, series.mean(1, dtype=np.float64).var(0, ddof=1))
    return np.sqrt(variance / chains)


def critical_value(degrees: float, tests: int) -> float:
    """Return the critical value of the t statistics of several two-sided tests, by Bonferroni."""
    return float(stats.t.isf(FALSE_ALARM / (2 * max(tests, 1)), degrees))
