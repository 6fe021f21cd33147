# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What the sparse regression tutorials compute beside the package: data, scores, baselines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"

for package in ("scipy", "skglm", "sklearn"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the tutorials need {package}: .[tutorials]", allow_module_level=True)

sys.path.insert(0, str(TUTORIALS / "reproduce"))
classical = importlib.import_module("sparse_linear.classical")
data = importlib.import_module("sparse_linear.data")
horseshoe = importlib.import_module("sparse_linear.horseshoe")
metrics = importlib.import_module("sparse_linear.metrics")
sampling = importlib.import_module("sparse_linear.sampling")

# All statistical checks below are two-sided at this many standard errors: about 7 in a million of a
# false alarm for one comparison, and the seeds are fixed.
Z = 4.5


# -- the data


def test_features_have_the_stated_covariance() -> None:
    rows, columns = 20_000, 6
    x = data.correlated_normals(np.random.default_rng(0), rows, columns)
    lags = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    expected = 0.6**lags
    # The mean of x_j x_k over N independent rows has variance (S_jj S_kk + S_jk^2) / N (Isserlis),
    # where S_jj = 1; the mean of x_j has variance 1 / N.
    error = np.sqrt((1.0 + expected**2) / rows)
    assert np.all(np.abs(x.T @ x / rows - expected) < Z * error)
    assert np.all(np.abs(x.mean(0)) < Z / np.sqrt(rows))


def test_responses_and_signals_have_the_stated_law() -> None:
    size = data.Size(train=5, test=20, features=4)
    problems = [data.simulate(seed, size) for seed in range(500)]
    betas = np.stack([problem.beta for problem in problems])
    assert np.all(betas[:, 3] == 0.0)
    # 500 draws from Normal((3, 2, 1), 0.2^2): their mean has standard error 0.2 / sqrt(500), their
    # sample variance the relative standard error sqrt(2 / 499).
    assert np.all(np.abs(betas[:, :3].mean(0) - [3.0, 2.0, 1.0]) < Z * 0.2 / np.sqrt(500))
    assert np.all(np.abs(betas[:, :3].var(0, ddof=1) / 0.04 - 1.0) < Z * np.sqrt(2 / 499))
    for X, y in (("X", "y"), ("X_test", "y_test")):
        noise = np.concatenate([getattr(p, y) - getattr(p, X) @ p.beta for p in problems])
        # The mean square of N normals of variance 3 has standard error 3 sqrt(2 / N).
        assert abs(np.mean(noise**2) - 3.0) < Z * 3.0 * np.sqrt(2 / len(noise))


def test_data_depend_on_the_seed_alone() -> None:
    size = data.Size(train=4, test=3, features=5)
    first = data.simulate(7, size)
    np.random.seed(1)
    torch.manual_seed(1)
    again, other = data.simulate(7, size), data.simulate(8, size)
    for name in ("X", "y", "X_test", "y_test", "beta"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert first.X.shape == (4, 5) and first.X_test.shape == (3, 5)


def test_too_few_features_are_refused() -> None:
    with pytest.raises(ValueError, match="features=2, expected at least 3"):
        data.Size(features=2)


# -- the scores


def hand_problem() -> Any:
    """Five features, test responses 1 and 2, of which a fit of all zeros explains nothing."""
    beta = np.array([3.0, 2.0, 1.0, 0.0, 0.0])
    return data.Problem(
        X=np.eye(5), y=beta, X_test=np.eye(5)[:2], y_test=np.array([4.0, 0.0]), beta=beta
    )


def test_scores_by_hand() -> None:
    interval = np.array([[2.0, 2.1, 0.9, -0.1, 0.1], [4.0, 3.0, 1.1, 0.1, 0.2]])
    fit = metrics.Fit(
        coefficients=np.array([2.0, 3.0, 0.0, 0.0, 0.0]),
        selected=np.array([True, True, True, True, False]),
        interval=interval,
        last=np.array([4.0, 1.0, 0.0, 0.0, 0.0]),
    )
    row = metrics.score(hand_problem(), fit)
    # Residuals 4 - 2 = 2 and 0 - 3 = -3; of the last draw 0 and -1.
    assert row["mse"] == pytest.approx((4 + 9) / 2)
    assert row["mae"] == pytest.approx((2 + 3) / 2)
    assert row["mse_last"] == pytest.approx(1 / 2)
    # Kept: 1, 2, 3, 4. All three: 3 of 4 are right. beta_1, beta_2 (3 ignored): 2 of 3.
    assert (row["precision_123"], row["recall_123"]) == (0.75, 1.0)
    assert (row["precision_12"], row["recall_12"]) == (pytest.approx(2 / 3), 1.0)
    assert row["selected"] == 4.0
    # 3 in [2, 4]; 2 not in [2.1, 3]; 1 in [.9, 1.1]; 0 in [-.1, .1] but not in [.1, .2].
    covered = [row[f"coverage_beta{j}"] for j in (1, 2, 3)]
    assert covered == [1.0, 0.0, 1.0] and row["coverage_zeros"] == 0.5
    assert row["interval_length"] == pytest.approx((2.0 + 0.9 + 0.2) / 3)


def test_scores_of_a_fit_that_keeps_nothing() -> None:
    row = metrics.score(hand_problem(), metrics.Fit(np.zeros(5), np.zeros(5, dtype=bool)))
    assert (row["precision_12"], row["recall_12"], row["recall_123"]) == (0.0, 0.0, 0.0)
    assert np.isnan(row["coverage_beta1"]) and np.isnan(row["mse_last"])


def test_support_rules() -> None:
    interval = np.array([[-1.0, 0.1, -2.0, 0.0], [1.0, 0.2, -1.0, 1.0]])
    assert metrics.excludes_zero(interval).tolist() == [False, True, True, False]
    rho = np.array([[0.0, 1.0], [0.5, 0.5]])
    # The Gaussian is the wide component at v0 = 0.1, v1 = 10 and the narrow one at 0.005, 1e-5.
    assert sampling.wide_inclusion(rho, 0.1, 10.0).tolist() == [0.25, 0.75]
    assert sampling.wide_inclusion(rho, 0.005, 1e-5).tolist() == [0.75, 0.25]


# -- the baselines


def test_ridge_is_the_posterior_of_the_gaussian_model() -> None:
    problem = data.simulate(3, data.Size(train=8, test=1, features=12))
    fit = classical.ridge_posterior(problem.X, problem.y, prior_variance=0.7, noise_variance=2.0)
    # The textbook form, with a p by p precision in place of the n by n matrix.
    covariance = np.linalg.inv(problem.X.T @ problem.X / 2.0 + np.eye(12) / 0.7)
    half_width = 1.6448536269514722 * np.sqrt(np.diag(covariance))  # 95 % point of Normal(0, 1)
    np.testing.assert_allclose(fit.coefficients, covariance @ problem.X.T @ problem.y / 2.0)
    np.testing.assert_allclose(fit.interval[1] - fit.interval[0], 2 * half_width)


def test_least_squares_uses_the_given_features_alone() -> None:
    problem = data.simulate(3, data.Size(train=30, test=1, features=6))
    fit = classical.least_squares(problem, [0, 2])
    residual = problem.y - problem.X @ fit.coefficients
    np.testing.assert_allclose(problem.X[:, [0, 2]].T @ residual, 0.0, atol=1e-10)
    assert fit.coefficients[[1, 3, 4, 5]].tolist() == [0.0] * 4
    assert fit.selected.tolist() == [True, False, True, False, False, False]


@pytest.mark.parametrize("method", ["lasso", "relaxed_lasso"])
def test_penalised_baselines_find_an_obvious_support(method: str) -> None:
    # Least squares has standard errors of about 0.1 here, against signals of 3, 2 and 1.
    problem = data.simulate(0, data.Size(train=500, test=500, features=10))
    fit = getattr(classical, method)(problem, seed=0)
    assert fit.selected[:3].all()
    oracle = metrics.score(problem, classical.least_squares(problem, problem.signals))
    # Ten features cost at most 10 * 3 / 500 in expectation: allow for twice that.
    assert metrics.score(problem, fit)["mse"] < oracle["mse"] + 0.12


def test_horseshoe_draws_coefficients_from_their_conditional() -> None:
    torch.manual_seed(0)
    problem = data.simulate(1, data.Size(train=6, test=1, features=9))
    X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
    variance = torch.linspace(0.2, 2.0, 9, dtype=torch.float64)
    sigma = torch.tensor(1.3, dtype=torch.float64)
    covariance = torch.linalg.inv(X.T @ X / sigma**2 + torch.diag(1.0 / variance))
    expected = covariance @ X.T @ y / sigma**2
    count = 4000
    pairs = [horseshoe.draw_coefficients(X, y, variance, sigma) for _ in range(count)]
    torch.testing.assert_close(pairs[0][1], expected)
    draws = torch.stack([draw for draw, _ in pairs])
    deviation = covariance.diag().sqrt()
    assert bool(((draws.mean(0) - expected).abs() < Z * deviation / count**0.5).all())
    assert bool(((draws.var(0) / covariance.diag() - 1.0).abs() < Z * (2 / count) ** 0.5).all())


def test_starting_values_do_not_touch_the_global_generator() -> None:
    state = torch.get_rng_state()
    first = sampling.first_values(sampling.PAPER, features=50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["beta"], sampling.first_values(sampling.PAPER, 50, 3)["beta"])
    assert first["beta"].shape == (50,) and float(first["delta"]) == 0.5
