# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Penalised logistic and multinomial regressions, their penalties by the log loss of five stratified
folds of the training rows.

Two classes have one coefficient for each gene, more have one for each gene and class, and a gene is
selected if one of its coefficients is not 0. The lasso of two classes is by liblinear, which
penalises the intercept, too; the elastic net and the lasso of more classes do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sparse_linear.data import Array

from .net import net_path

RIDGE: Array = np.geomspace(1e-5, 10.0, 13)
LASSO: Array = np.geomspace(0.02, 20.0, 10)
NET: Array = np.geomspace(0.02, 20.0, 7)
"""Inverse penalties."""
SHARES = (0.2, 0.5, 0.8)
"""Shares of the absolute penalty in the elastic net."""
REFITS = (0.1, 1.0, 10.0)
"""Variances of the Normal prior of the coefficients that the relaxed lasso refits."""


def fit_classes(method: str, x: Array, y: Array, x_test: Array) -> tuple[Array, Array]:
    """Probabilities of the classes, shape (n, classes), and which features are selected."""
    if method == "relaxed lasso":
        return relaxed_lasso(x, y, x_test)
    if method == "elastic net":
        return elastic_net(x, y, x_test, SHARES, NET)
    if method == "lasso" and not _has_two(y):
        return elastic_net(x, y, x_test, [1.0], LASSO)
    model = LogisticRegressionCV(
        Cs=RIDGE if method == "ridge" else LASSO,
        cv=5, penalty="l2" if method == "ridge" else "l1",
        solver="lbfgs" if method == "ridge" else "liblinear",
        scoring="neg_log_loss", max_iter=2000,
    ).fit(x, y)  # fmt: skip
    return model.predict_proba(x_test), (model.coef_ != 0.0).any(0)


def elastic_net(
    x: Array, y: Array, x_test: Array, shares: Sequence[float], grid: Array
) -> tuple[Array, Array]:
    """The elastic net, of which the share and the penalty are chosen together."""
    classes, losses = np.unique(y), np.zeros((len(shares), len(grid)))
    for inner, held_out in StratifiedKFold(5).split(x, y):
        for i, share in enumerate(shares):
            for j, (weights, intercepts) in enumerate(net_path(x[inner], y[inner], grid, share)):
                chance = softmax(x[held_out] @ weights + intercepts, axis=1)
                losses[i, j] += log_loss(y[held_out], chance, labels=classes, normalize=False)
    i, j = map(int, np.unravel_index(losses.argmin(), losses.shape))
    weights, intercepts = list(net_path(x, y, grid[: j + 1], shares[i]))[-1]
    return softmax(x_test @ weights + intercepts, axis=1), (weights != 0.0).any(1)


def relaxed_lasso(x: Array, y: Array, x_test: Array) -> tuple[Array, Array]:
    """
    A ridge regression on the features that a lasso selects. The lasso's penalty and that of the
    ridge are chosen together, by the log loss of the ridge.
    """
    classes, losses = np.unique(y), np.zeros((len(LASSO), len(REFITS)))
    for inner, held_out in StratifiedKFold(5).split(x, y):
        for i, kept in enumerate(supports(x[inner], y[inner])):
            for j, variance in enumerate(REFITS):
                chance = _refit(x[inner], y[inner], kept, variance, x[held_out])
                losses[i, j] += log_loss(y[held_out], chance, labels=classes, normalize=False)
    i, j = map(int, np.unravel_index(losses.argmin(), losses.shape))
    kept = list(supports(x, y))[i]
    return _refit(x, y, kept, REFITS[j], x_test), kept


def supports(x: Array, y: Array) -> Iterator[Array]:
    """Which features the lasso selects, from strong to weak penalties."""
    if not _has_two(y):
        yield from ((weights != 0.0).any(1) for weights, _ in net_path(x, y, LASSO, 1.0))
        return
    for inverse_penalty in LASSO:
        model = LogisticRegression(
            C=inverse_penalty, penalty="l1", solver="liblinear", max_iter=2000
        )
        yield model.fit(x, y).coef_[0] != 0.0


def _refit(x: Array, y: Array, kept: Array, variance: float, x_test: Array) -> Array:
    def features(rows: Array) -> Array:  # a column of zeros, as there may be no other
        return np.column_stack([np.zeros(len(rows)), rows[:, kept]])

    model = LogisticRegression(C=variance, max_iter=2000).fit(features(x), y)
    return model.predict_proba(features(x_test))


def _has_two(y: Array) -> bool:
    """Whether there are two classes, which is all that liblinear, the fastest solver, has."""
    return len(np.unique(y)) == 2
