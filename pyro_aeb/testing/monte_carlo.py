# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Comparing a Monte Carlo estimate with a known truth.

Every comparison asks for ``|estimate - truth| < Z * standard error`` with Z = 5. A correct sampler
fails one with probability ``erfc(5 / sqrt(2))`` = 5.7e-7 where the error is normal with a known
standard deviation, and 1.2e-5 where the standard error comes from 40 batch means or replicates (t
with 39 degrees of freedom). Seeds are fixed, so a failure is a change of the code, never bad luck.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_aeb.testing.linear import Array

Z = 5.0


def z_scores(estimate: Any, truth: Any, standard_error: Any) -> Array:
    """``(estimate - truth) / standard error``, elementwise."""
    z: Array = (np.asarray(estimate) - np.asarray(truth)) / np.asarray(standard_error)
    return z


def assert_agrees(estimate: Any, truth: Any, standard_error: Any) -> None:
    """Fails unless all estimates lie within Z standard errors of the truth."""
    z = z_scores(estimate, truth, standard_error)
    assert np.all(np.abs(z) < Z), (
        f"estimate {estimate}\ntruth {truth}\nstandard error {standard_error}\nz {z}"
    )


def assert_tells_apart(estimate: Any, wrong: Any, standard_error: Any) -> None:
    """Fails unless all estimates are more than Z standard errors away from the wrong answer."""
    z = z_scores(estimate, wrong, standard_error)
    assert np.all(np.abs(z) > Z), f"the test is too weak to tell {wrong} from {estimate}: z {z}"


def batch_means(series: Any, batches: int = 40) -> tuple[Any, Any]:
    """
    The mean of a stationary series and its standard error, from the means of consecutive batches,
    which must be much longer than the series' autocorrelation.

    :param series: shape (draws, ...).
    """
    series = np.asarray(series, dtype=np.float64)
    series = series[len(series) % batches :]
    means = series.reshape(batches, -1, *series.shape[1:]).mean(1)
    return means.mean(0), means.std(0, ddof=1) / np.sqrt(batches)


def replicates(values: Any) -> tuple[Any, Any]:
    """The mean over independent replicates, shape (replicates, ...), and its standard error."""
    values = np.asarray(values, dtype=np.float64)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
