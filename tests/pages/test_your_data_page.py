# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The snippets of the page ``docs/your_data.md`` are one program, which finds what it should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your_data.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^<!-- runs -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("pandas")
    values: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))  # it writes files
        pyro.set_rng_seed(0)
        for number, snippet in enumerate(SNIPPETS):
            exec(compile(snippet, f"your_data.md, snippet {number}", "exec"), values)
    return values


def test_the_features_that_matter_are_chosen(names: dict[str, Any]) -> None:
    assert names["names"] == ["age", "income", "hours", "hours_missing", "city_Lima", "city_Oslo"]
    assert names["chosen"] == ["age", "city_Lima"]


def least_squares(names: dict[str, Any]) -> torch.Tensor:
    """Of the two features that matter, in standard units."""
    train = names["train"]
    x = names["X"][train][:, [0, 4]]
    return torch.linalg.lstsq(x, names["z"][train, None]).solution[:, 0]


@pytest.mark.parametrize("run", ["mcmc", "robust"])
def test_weights_are_those_of_least_squares(names: dict[str, Any], run: str) -> None:
    """Outliers have no weight under Student's t: they would move least squares by far more."""
    beta = names[run].get_samples()["beta"].mean(0)[[0, 4]]
    error = 0.45 / 160**0.5  # of a weight: the noise is 3 of 7 in units of y
    assert (beta - least_squares(names)).abs().max() < 4 * error


def test_other_targets_find_their_feature(names: dict[str, Any]) -> None:
    for run in ("by_yes", "gaps"):
        assert names[run].get_samples()["beta"].mean(0)[0] > 1.0
    # The log rate is 1 + 0.5 times the age; about 500 events, so an error of 0.05.
    counts = names["by_count"].get_samples()
    assert abs(counts["beta"].mean(0)[0] - 0.5) < 0.2
    assert abs(counts["intercept"].mean() - 1.0) < 0.2
    # The second output is the income with noise of 0.3.
    outputs = names["by_output"].get_samples()["beta"].mean(0)
    assert abs(outputs[1, 1] - 1.0) < 4 * 0.3 / 160**0.5 and outputs[0, 1].abs() < 0.1


def test_predictions(names: dict[str, Any]) -> None:
    y = names["y"][names["test"]]
    inside = (names["low"] <= y) & (y <= names["high"])
    # 40 rows at 90 %: 36 with a standard deviation of 1.9, and a second of the ends' draws.
    assert 28 <= int(inside.sum()) <= 40
    assert (names["middle"] - y).square().mean() < 1.5 * 9.0  # the noise has variance 9
    assert (names["guess"] == names["words"][names["test"]]).mean() > 0.5  # 1/3 by chance


def test_saved_draws_predict_likewise(names: dict[str, Any]) -> None:
    again = names["again"] * names["y_scale"] + names["y_center"]
    assert (again.median(0).values - names["middle"]).abs().mean() < 1.5
    assert again.shape == names["predicted"].shape
