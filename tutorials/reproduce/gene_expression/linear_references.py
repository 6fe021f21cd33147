# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Penalised regressions for a number, their penalties by cross-validation in the training rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from learned_width import ridge
from sklearn.linear_model import ElasticNetCV, LassoCV
from sklearn.model_selection import KFold
from sparse_linear.classical import mcp_path, relaxed_path
from sparse_linear.data import Array

SHARES = [0.1, 0.3, 0.5, 0.7, 0.9]
"""Shares of the absolute penalty in the elastic net."""
PATHS = {"relaxed lasso": relaxed_path, "mcp": mcp_path}
FALL: Array = np.geomspace(1.0, 0.05, 50)
"""Penalties of a path, in units of the least that selects nothing."""


def fit_linear(method: str, x: Array, y: Array, x_test: Array) -> tuple[Array, Array]:
    """Predictions, and which features have a coefficient that is not 0."""
    mean = y.mean()
    if method == "ridge":
        return ridge(x, y - mean, x_test) + mean, np.ones(x.shape[1], dtype=bool)
    if method in PATHS:
        coefficients = by_cross_validation(x, y, PATHS[method])
        return x_test @ coefficients + mean, coefficients != 0.0
    model = LassoCV(cv=5) if method == "lasso" else ElasticNetCV(l1_ratio=SHARES, cv=5)
    found = model.fit(x, y).predict(x_test)
    return found, model.coef_ != 0.0


def by_cross_validation(x: Array, y: Array, path: Callable[[Array, Array, Array], Array]) -> Array:
    """
    Coefficients at the penalty of least squared error in five folds, each of which is centred by
    its own training rows.

    :param x: centred features.
    :param path: from centred features and targets and a falling grid of penalties to coefficients,
        shape (p, len(grid)).
    """
    grid = np.abs(x.T @ (y - y.mean())).max() / len(y) * FALL
    errors = np.zeros(len(grid))
    for inner, held_out in KFold(5).split(x):
        centre, mean = x[inner].mean(0), y[inner].mean()
        coefficients = path(x[inner] - centre, y[inner] - mean, grid)
        found = (x[held_out] - centre) @ coefficients + mean
        errors += ((y[held_out, None] - found) ** 2).sum(0)
    used = grid[: int(errors.argmin()) + 1]
    return path(x, y - y.mean(), used)[:, -1]
