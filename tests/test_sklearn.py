# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The estimators keep scikit-learn's contract, and find what there is to find."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_aeb.sklearn import (
    NetworkClassifier,
    NetworkRegressor,
    SparseClassifier,
    SparseRegressor,
)

SHORT: dict[str, Any] = {"num_samples": 4, "warmup_steps": 4, "num_chains": 1}
OF_A_NETWORK: dict[str, Any] = {"num_samples": 40, "warmup_steps": 30, "num_chains": 2}
RNG = np.random.default_rng(0)
X = 5.0 + RNG.standard_normal((150, 8)) * np.array([1.0, 10.0, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0])
SIGNAL = 2.0 * (X[:, 0] - 5.0) - 0.15 * (X[:, 1] - 5.0)
Y = 40.0 + SIGNAL + 0.5 * RNG.standard_normal(150)
TRAIN, TEST = slice(0, 100), slice(100, None)


@parametrize_with_checks([SparseRegressor(**SHORT), SparseClassifier(**SHORT)])
def test_linear_models_keep_the_contract_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([NetworkRegressor(**SHORT), NetworkClassifier(**SHORT)])
def test_networks_keep_the_contract_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def regressor() -> SparseRegressor:
    estimator = SparseRegressor(random_state=0, num_samples=150, warmup_steps=60)
    return estimator.fit(X[TRAIN], Y[TRAIN])


def test_the_two_features_are_found(regressor: SparseRegressor) -> None:
    assert regressor.inclusion_[:2].min() > 0.99 and regressor.inclusion_[2:].max() < 0.5
    exact = LinearRegression().fit(X[TRAIN, :2], Y[TRAIN])
    error = 0.5 / np.sqrt(100) / X[TRAIN, :2].std(0)  # of a weight, in its units
    assert (np.abs(regressor.coef_[:2] - exact.coef_) < 2 * error).all()
    assert regressor.check_.ok, regressor.check_
    assert set(regressor.inference_data_.posterior["features"].values) == {
        f"x{i}" for i in range(8)
    }


def test_predictions_and_their_intervals(regressor: SparseRegressor) -> None:
    error = np.mean((regressor.predict(X[TEST]) - Y[TEST]) ** 2)
    assert error < 0.25 * 1.6  # the noise's 0.25; 50 squares have a standard deviation of 20 %
    low, high = regressor.predict_interval(X[TEST]).T
    # 50 rows at 90 %: 45 with a standard deviation of 2.1.
    assert 39 <= np.sum((low <= Y[TEST]) & (Y[TEST] <= high)) <= 50
    # Twice 1.645 of the noise's 0.5, and of its estimate, of 7 %.
    assert abs(np.mean(high - low) / (2 * 1.645 * 0.5) - 1.0) < 0.3


def test_more_features_than_rows_have_a_learned_width() -> None:
    rng = np.random.default_rng(5)
    many = rng.standard_normal((160, 300))
    y = 3.0 * many[:, 0] - 2.0 * many[:, 1] + rng.standard_normal(160)
    fitted = SparseRegressor(random_state=0, num_samples=200).fit(many[:60], y[:60])
    assert fitted.inclusion_[:2].min() > 0.9 and fitted.inclusion_[2:].max() < 0.5
    # Of 100 squares the standard deviation is 14 %; the features leave the noise's 1 of 14.
    assert np.mean((fitted.predict(many[60:]) - y[60:]) ** 2) < 1.5
    assert "v0" in fitted.inference_data_.posterior
    fixed = SparseRegressor(v0=0.005, random_state=0, **SHORT).fit(many[:60], y[:60])
    few = SparseRegressor(random_state=0, **SHORT).fit(many[:60, :50], y[:60])
    assert all("v0" not in own.inference_data_.posterior for own in (fixed, few))


def test_a_width_is_a_number_or_auto() -> None:
    with pytest.raises(ValueError, match="v0 is 'wide', expected a number above 0, or 'auto'"):
        SparseRegressor(v0="wide").fit(X, Y)


@pytest.mark.parametrize(
    "names", [np.array(["no", "yes"]), np.array([0, 1]), np.array(list("abc"))]
)
def test_classes(names: Any) -> None:
    edges = np.quantile(SIGNAL, np.arange(1, len(names)) / len(names))
    y = names[np.digitize(SIGNAL, edges)]
    fitted = SparseClassifier(random_state=0, num_samples=60, warmup_steps=40).fit(
        X[TRAIN], y[TRAIN]
    )
    assert list(fitted.classes_) == list(names)
    probability = fitted.predict_proba(X[TEST])
    np.testing.assert_allclose(probability.sum(1), 1.0, rtol=1e-6)
    assert np.mean(fitted.predict(X[TEST]) == y[TEST]) > 0.8
    inclusion = fitted.inclusion_.reshape(8, -1).max(1)
    assert inclusion[:2].min() > 0.9


def test_a_data_frame_names_the_features() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdefgh"))
    fitted = SparseRegressor(random_state=0, **SHORT).fit(frame, Y)
    assert list(fitted.feature_names_in_) == list("abcdefgh")
    assert list(fitted.inference_data_.posterior["features"].values) == list("abcdefgh")


def test_pipelines_searches_and_clones() -> None:
    pipeline = make_pipeline(StandardScaler(), SparseRegressor(random_state=0, **SHORT))
    search = GridSearchCV(pipeline, {"sparseregressor__v0": [0.02, 0.1]}, cv=2).fit(X, Y)
    assert search.best_score_ > 0.9
    again = clone(search.best_estimator_).fit(X, Y)
    np.testing.assert_array_equal(again.predict(X), search.best_estimator_.predict(X))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="y has one class, 'a', expected two classes or more"):
        SparseClassifier().fit(X, np.array(["a"] * len(X)))


INPUTS = np.random.default_rng(1).uniform(-2.0, 2.0, (400, 5))
PRODUCT = INPUTS[:, 0] * INPUTS[:, 1]  # of which no linear model knows anything


def test_a_network_regressor() -> None:
    y = 100.0 + PRODUCT + 0.3 * np.random.default_rng(2).standard_normal(400)
    fitted = NetworkRegressor(random_state=0, **OF_A_NETWORK).fit(INPUTS[:300], y[:300])
    left = fitted.predict(INPUTS[300:]) - y[300:]
    assert np.mean(left**2) < 0.3 * y[300:].var()  # of which the noise is a twentieth
    low, high = fitted.predict_interval(INPUTS[300:]).T
    # 100 rows at 90 %, with a standard deviation of 3.
    assert 81 <= np.sum((low <= y[300:]) & (y[300:] <= high)) <= 99
    assert fitted.inclusion_[:2].min() > fitted.inclusion_[2:].max()


def test_a_network_classifier() -> None:
    y = np.where(PRODUCT > 0.0, "same", "opposite")
    fitted = NetworkClassifier(random_state=0, **OF_A_NETWORK).fit(INPUTS[:300], y[:300])
    assert fitted.score(INPUTS[300:], y[300:]) > 0.85
    probability = fitted.predict_proba(INPUTS[300:])
    np.testing.assert_allclose(probability.sum(1), 1.0, rtol=1e-6)


def test_a_fit_leaves_the_random_numbers_of_torch_alone() -> None:
    before = torch.get_rng_state()
    NetworkRegressor(random_state=0, **SHORT).fit(X, Y)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("level", [0.0, 1.0, 90])
def test_a_level_is_a_probability(level: float, regressor: SparseRegressor) -> None:
    with pytest.raises(ValueError, match="expected a probability between 0 and 1"):
        regressor.predict_interval(X, level)


def test_the_program_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    page = (Path(__file__).resolve().parents[1] / "docs" / "scikit_learn.md").read_text("utf-8")
    (program,) = re.findall(r"^<!-- runs -->\n```python\n(.*?)^```$", page, re.M | re.S)
    names: dict[str, Any] = {"__name__": "page"}
    fit, count = "SparseRegressor(random_state=0)", program.count("SparseRegressor(random_state=0)")
    assert count == 1
    shorter = "SparseRegressor(random_state=0, num_samples=100, warmup_steps=60)"
    exec(compile(program.replace(fit, shorter), "scikit_learn.md", "exec"), names)
    # 111 rows at 90 %, with a standard deviation of 3 points.
    assert 0.8 < names["held"] < 1.0
    found = dict(zip(names["X"].columns, names["fitted"].inclusion_, strict=True))
    # Body mass and the serum s5 have the largest effects of every analysis of these data.
    assert found["bmi"] > 0.9 and found["s5"] > 0.9
    assert "bmi" in capsys.readouterr().out
