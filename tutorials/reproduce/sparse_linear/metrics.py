# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The result of a method, and its scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .data import Array, Problem

#: Central probability of every interval reported.
INTERVAL = 0.9


@dataclass(frozen=True)
class Fit:
    """
    The outcome of one method on one data set.

    :param coefficients: estimate of beta (the posterior mean, where there is one), shape (p,).
    :param selected: which features the method keeps, shape (p,). The rules: an SSGL prior keeps a
        feature whose averaged probability of the wide component exceeds 1/2; lasso and MCP keep
        what is not zero; any other posterior keeps a feature whose 90 % interval excludes zero.
    :param interval: ends of the central 90 % intervals, shape (2, p); None for a method without.
    :param last: the last draw of a chain, shape (p,); None for a method without draws.
    :param notes: figures of the method's own, such as an effective sample size.
    """

    coefficients: Array
    selected: NDArray[np.bool_]
    interval: Array | None = None
    last: Array | None = None
    notes: dict[str, float] = field(default_factory=dict)


def excludes_zero(interval: Array) -> NDArray[np.bool_]:
    """
    Which intervals do not hold zero.

    :param interval: lower and upper ends, shape (2, p).
    """
    return (interval[0] > 0.0) | (interval[1] < 0.0)


def precision_recall(
    selected: NDArray[np.bool_], wanted: list[int], ignored: list[int]
) -> tuple[float, float]:
    """
    Share of the selected features that are wanted, and share of the wanted that are selected.
    Where nothing is selected the precision is 0.

    :param selected: which features are kept, shape (p,).
    :param wanted: positions that should be kept.
    :param ignored: positions that count neither way.
    """
    counted = set(np.flatnonzero(selected).tolist()) - set(ignored)
    hits = len(counted & set(wanted))
    return (hits / len(counted) if counted else 0.0), hits / len(wanted)


def score(problem: Problem, fit: Fit) -> dict[str, float]:
    """
    Every figure of one row of the results. ``*_12`` asks for beta_1 and beta_2 and lets beta_3
    count neither way; ``*_123`` asks for all three. A figure that the method does not have is nan.

    :param problem: the data set.
    :param fit: what the method made of its training half.
    """

    def residuals(beta: Array) -> Array:
        return problem.y_test - problem.X_test @ beta

    first, second, third = problem.signals
    errors = residuals(fit.coefficients)
    precision_12, recall_12 = precision_recall(fit.selected, [first, second], [third])
    precision_123, recall_123 = precision_recall(fit.selected, problem.signals, [])
    row = {
        "mse": float(np.mean(errors**2)),
        "mae": float(np.mean(np.abs(errors))),
        "mse_last": float(np.mean(residuals(fit.last) ** 2)) if fit.last is not None else np.nan,
        "precision_12": precision_12,
        "recall_12": recall_12,
        "precision_123": precision_123,
        "recall_123": recall_123,
        "selected": float(np.sum(fit.selected)),
    }
    for j in problem.signals:
        row[f"beta{j + 1}"] = float(fit.coefficients[j])
    row |= coverage(problem, fit.interval)
    return row


def coverage(problem: Problem, interval: Array | None) -> dict[str, float]:
    """
    Whether the intervals hold the truth, for each signal and as a share of the zeros, and the mean
    length of the signals' intervals.

    :param problem: the data set.
    :param interval: lower and upper ends, shape (2, p), or None.
    """
    names = [f"coverage_beta{j + 1}" for j in problem.signals]
    if interval is None:
        return dict.fromkeys([*names, "coverage_zeros", "interval_length"], np.nan)
    holds = (interval[0] <= problem.beta) & (problem.beta <= interval[1])
    zeros = problem.beta == 0.0
    lengths = (interval[1] - interval[0])[problem.signals]
    row = {name: float(holds[j]) for j, name in zip(problem.signals, names, strict=True)}
    return row | {
        "coverage_zeros": float(np.mean(holds[zeros])) if zeros.any() else np.nan,
        "interval_length": float(np.mean(lengths)),
    }
