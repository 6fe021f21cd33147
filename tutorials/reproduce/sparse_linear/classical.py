# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Baselines that need no sampling: least squares, exact ridge, and lasso, relaxed lasso and MCP by
cross-validation.

No method of the table fits an intercept: the simulated data have none, and all are told so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, lasso_path
from sklearn.model_selection import KFold

from .data import NOISE_VARIANCE, Array, Problem
from .metrics import INTERVAL, Fit, excludes_zero

FOLDS = 10
PENALTIES = 50

#: Variance of the Normal prior of the ridge and SGLD rows: beta_j ~ Normal(0, 1). It is the prior
#: from which the paper's SGLD baseline starts (kappa_1 = 1, sigma = 1).
RIDGE_PRIOR_VARIANCE = 1.0


def least_squares(problem: Problem, features: list[int]) -> Fit:
    """
    Least squares on the given features alone, with Student-t intervals: an oracle.

    :param problem: the data set.
    :param features: positions of the features that are used; all others are exactly zero.
    """
    n, p = problem.X.shape
    X = problem.X[:, features]
    precision = X.T @ X
    estimate = np.linalg.solve(precision, X.T @ problem.y)
    freedom = n - len(features)
    variance = np.sum((problem.y - X @ estimate) ** 2) / freedom
    deviation = np.sqrt(variance * np.diag(np.linalg.inv(precision)))
    half_width = stats.t.ppf(0.5 + INTERVAL / 2, freedom) * deviation

    coefficients, interval = np.zeros(p), np.zeros((2, p))
    coefficients[features] = estimate
    interval[:, features] = estimate - half_width, estimate + half_width
    selected = np.zeros(p, dtype=bool)
    selected[features] = True
    return Fit(coefficients, selected, interval)


def ridge_posterior(X: Array, y: Array, prior_variance: float, noise_variance: float) -> Fit:
    """
    The exact posterior of ``y ~ Normal(X beta, noise_variance)``, ``beta_j ~ Normal(0, v)``. With
    the n by n matrix ``G = X X' + (noise_variance / v) I`` its mean is ``X' G^-1 y`` and its
    variances are ``v (1 - diag(X' G^-1 X))`` (Woodbury), so that p may be large.

    :param X: training features, shape (n, p).
    :param y: training responses, shape (n,).
    :param float prior_variance: v, in squared units of beta.
    :param float noise_variance: variance of y about its mean, in squared units of y.
    """
    gram = X @ X.T + noise_variance / prior_variance * np.eye(len(y))
    weighted = np.linalg.solve(gram, X)
    mean = weighted.T @ y
    variance = prior_variance * (1.0 - np.einsum("np,np->p", X, weighted))
    half_width = stats.norm.ppf(0.5 + INTERVAL / 2) * np.sqrt(variance)
    interval = np.stack([mean - half_width, mean + half_width])
    return Fit(mean, excludes_zero(interval), interval)


def ridge(problem: Problem) -> Fit:
    """
    Exact ridge: the posterior that the plain SGLD row samples, without Monte Carlo error. Prior
    beta_j ~ Normal(0, 1); the noise variance is held at its true value, which favours
    the baseline.
    """
    return ridge_posterior(problem.X, problem.y, RIDGE_PRIOR_VARIANCE, NOISE_VARIANCE)


def lasso(problem: Problem, seed: int) -> Fit:
    """
    The lasso, its penalty chosen by cross-validation on the training half.

    :param problem: the data set.
    :param int seed: decides the folds.
    """
    model = LassoCV(cv=_folds(seed), fit_intercept=False, max_iter=20_000)
    coefficients = model.fit(problem.X, problem.y).coef_
    return Fit(coefficients, coefficients != 0.0)


def relaxed_lasso(problem: Problem, seed: int) -> Fit:
    """
    The lasso's path, with least squares on the features that each penalty selects.

    :param problem: the data set.
    :param int seed: decides the folds.
    """
    return _by_cross_validation(problem, seed, relaxed_path)


def mcp(problem: Problem, seed: int) -> Fit:
    """
    The minimax concave penalty by skglm, with concavity 3 (the usual value). Every path runs from
    strong to weak penalties with warm starts: the objective is not convex, and this is the usual
    way to a good local optimum.

    :param problem: the data set.
    :param int seed: decides the folds.
    """
    return _by_cross_validation(problem, seed, mcp_path)


def _folds(seed: int) -> KFold:
    return KFold(FOLDS, shuffle=True, random_state=seed)


def _by_cross_validation(
    problem: Problem, seed: int, path: Callable[[Array, Array, Array], Array]
) -> Fit:
    """
    A path of estimates whose penalty is chosen by cross-validation on the training half. The grid
    has :data:`PENALTIES` values, evenly spaced in log between the smallest that selects nothing and
    a twentieth of it.

    :param path: from features of unit scale, responses and a falling grid of penalties to
        coefficients of shape (p, len(grid)).
    """
    y, deviation = problem.y, problem.X.std(0)
    X = problem.X / deviation
    grid = np.max(np.abs(X.T @ y)) / len(y) * np.geomspace(1.0, 0.05, PENALTIES)
    errors = np.zeros(PENALTIES)
    for train, held_out in _folds(seed).split(X):
        predictions = X[held_out] @ path(X[train], y[train], grid)
        errors += np.sum((y[held_out, None] - predictions) ** 2, axis=0)
    used = grid[: int(np.argmin(errors)) + 1]
    coefficients = path(X, y, used)[:, -1] / deviation
    return Fit(coefficients, coefficients != 0.0)


def relaxed_path(X: Array, y: Array, grid: Array) -> Array:
    path = lasso_path(X, y, alphas=grid, max_iter=20_000)[1]
    for k in range(len(grid)):
        kept = np.flatnonzero(path[:, k])
        if 0 < len(kept) <= len(y) // 2:  # with more features the lasso's own estimate stands
            path[kept, k] = np.linalg.lstsq(X[:, kept], y, rcond=None)[0]
    return path


def mcp_path(X: Array, y: Array, grid: Array) -> Array:
    from skglm import MCPRegression  # here, because it takes seconds to import

    model = MCPRegression(gamma=3.0, fit_intercept=False, warm_start=True, tol=1e-5)
    path = np.zeros((X.shape[1], len(grid)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k, alpha in enumerate(grid):
            path[:, k] = model.set_params(alpha=alpha).fit(X, y).coef_
    return path
