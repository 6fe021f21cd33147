# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Comparison of Monte Carlo estimates with a known truth.

Every comparison requires ``|estimate - truth| < Z * standard error`` with Z = 5. A correct sampler
fails one with probability ``erfc(5 / sqrt(2))`` = 5.7e-7 if the error is normal with a known
standard deviation, and 1.2e-5 if the standard error comes from 40 batch means or replicates (t with
39 degrees of freedom). Seeds are fixed, so a failure is due to a change of the code, never to
chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_aeb.testing.linear import Array

Z = 5.0


def z_scores(estimate: Any, truth: Any, standard_error: Any) -> Array:
    """Return ``(estimate - truth) / standard_error``, elementwise."""
    z: Array = (np.asarray(estimate) - np.asarray(truth)) / np.asarray(standard_error)
    return z


def assert_agrees(estimate: Any, truth: Any, standard_error: Any) -> None:
    """
    Require that all estimates lie within Z = 5 standard errors of the truth.

    :param estimate: estimates, of any shape.
    :param truth: true values, of a shape that broadcasts with the estimates'.
    :param standard_error: standard errors of the estimates, likewise.
    :raises AssertionError: if one does not.
    """
    z = z_scores(estimate, truth, standard_error)
    assert np.all(np.abs(z) < Z), (
        f"estimate {estimate}\ntruth {truth}\nstandard error {standard_error}\nz {z}"
    )


def assert_tells_apart(estimate: Any, wrong: Any, standard_error: Any) -> None:
    """
    Require that all estimates lie more than Z = 5 standard errors from a wrong answer, so that
    :func:`assert_agrees` would have rejected it.

    :param estimate: estimates, of any shape.
    :param wrong: wrong values, of a shape that broadcasts with the estimates'.
    :param standard_error: standard errors of the estimates, likewise.
    :raises AssertionError: if one does not.
    """
    z = z_scores(estimate, wrong, standard_error)
    assert np.all(np.abs(z) > Z), f"the test is too weak to tell {wrong} from {estimate}: z {z}"


def means_of_batches(series: Any, batches: int) -> Array:
    """
    Return the means of consecutive batches of a series, shape (draws, ...) to (batches, ...), in
    float64. Draws at the start that do not fill a batch are left out.

    :raises ValueError: if there are fewer draws than batches.
    """
    series = np.asarray(series, dtype=np.float64)
    if len(series) < batches:
        raise ValueError(f"{len(series)} draws, expected at least {batches} for as many batches")
    series = series[len(series) % batches :]
    means: Array = series.reshape(batches, -1, *series.shape[1:]).mean(1)
    return means


def batch_means(series: Any, batches: int = 40) -> tuple[Any, Any]:
    """
    Return the mean of a stationary series and its standard error, by batch means.

    :param series: values of shape (draws, ...).
    :param int batches: number of consecutive batches, whose means are taken as independent. Batches
        must be much longer than the autocorrelation of the series.
    :returns: mean and standard error, each of the shape of one draw.
    :raises ValueError: if there are fewer draws than batches.
    """
    return replicates(means_of_batches(series, batches))


def replicates(values: Any) -> tuple[Any, Any]:
    """
    Return the mean over independent replicates and its standard error.

    :param values: values of shape (replicates, ...).
    :returns: mean and standard error, each of the shape of one replicate.
    """
    values = np.asarray(values, dtype=np.float64)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
