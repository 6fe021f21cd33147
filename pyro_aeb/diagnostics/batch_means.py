# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Means of correlated draws and their errors, by batch means: a series is cut into ten consecutive
batches, whose means are taken as independent. That holds where the draws forget within a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Array = np.ndarray[Any, np.dtype[Any]]

BATCHES = 10
"""How many batches a series is cut into."""

FALSE_ALARM = 0.01
"""The chance that a check of a healthy run raises a false alarm, over all of its tests together."""


class Mean(NamedTuple):
    """
    :param float mean: of a series.
    :param float error: its standard error.
    :param int degrees: of freedom that the error is estimated with.
    """

    mean: float
    error: float
    degrees: int


def batch_means(values: Array, batches: int = BATCHES) -> Array:
    """
    The means of consecutive batches, shape (..., draws) to (..., batches). What does not fill the
    first batch is left out.

    :raises ValueError: if there are fewer draws than batches.
    """
    length = values.shape[-1] // batches
    if length == 0:
        raise ValueError(
            f"{values.shape[-1]} draws, expected at least {batches} for as many batches"
        )
    kept = values[..., values.shape[-1] - length * batches :]
    return kept.reshape(*kept.shape[:-1], batches, length).astype(np.float64).mean(-1)


def mean_of(values: Array) -> Mean:
    """The mean over chains and draws of an array of shape (chains, draws)."""
    means = batch_means(np.atleast_2d(values)).reshape(-1)
    return Mean(float(means.mean()), float(stats.sem(means)), len(means) - 1)


def critical(degrees: float, tests: int) -> float:
    """
    What the t statistic of one of several two-sided tests has to exceed for an alarm, by
    Bonferroni.

    :param float degrees: of freedom.
    :param int tests: how many there are.
    """
    return float(stats.t.isf(FALSE_ALARM / (2 * max(tests, 1)), degrees))
