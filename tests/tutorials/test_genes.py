# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The genes' folds, references and overlaps by hand, and the script at smoke size."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tutorial_runs import read_rows, require_packages, run_script

require_packages("pandas", "scipy", "skglm", "sklearn", "tqdm")
class_references = importlib.import_module("gene_expression.class_references")
data = importlib.import_module("gene_expression.data")
fits = importlib.import_module("gene_expression.fits")
net = importlib.import_module("gene_expression.net")
linear_references = importlib.import_module("gene_expression.linear_references")
selections = importlib.import_module("gene_expression.selections")

ROWS, GENES = 60, 50


def save(folder: Path, name: str) -> Any:
    """Write a set of intensities, and return its features and targets."""
    rng = np.random.default_rng(0)
    classes = data.SETS[name].classes
    x = 10.0 ** rng.uniform(0.0, 5.0, (ROWS, GENES))
    y = np.array(list("dcba"[-classes:]) * ROWS)[:ROWS] if classes else rng.standard_normal(ROWS)
    np.savez(folder / f"{name}.npz", x=x, y=y)
    return x, y


# -- folds


def test_folds_of_a_shuffle_test_every_row_once(tmp_path: Path) -> None:
    _, y = save(tmp_path, "riboflavin")
    for shuffle in range(data.SHUFFLES):
        numbers = range(shuffle * data.FOLDS, (shuffle + 1) * data.FOLDS)
        splits = [data.fold("riboflavin", number, tmp_path, 20) for number in numbers]
        assert sorted(np.concatenate([split.y_test for split in splits])) == sorted(y)
        assert all(sorted([*split.y, *split.y_test]) == sorted(y) for split in splits)


def test_features_are_clipped_logs_standardised_by_the_training_rows(tmp_path: Path) -> None:
    x, _ = save(tmp_path, "shipp")
    split = data.fold("shipp", 3, tmp_path, 20)
    np.testing.assert_allclose(split.x.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(split.x.std(0), 1.0)
    # The rows, in any order, are the logs up to a shift and a scale.
    logs = np.sort(np.log10(x.clip(20.0, 16000.0))[:, split.columns], axis=0)
    both = np.sort(np.concatenate([split.x, split.x_test]), axis=0)
    for own, found in zip(logs.T, both.T, strict=True):
        assert np.corrcoef(own, found)[0, 1] == pytest.approx(1.0, abs=1e-12)


def test_classes_are_numbered_by_the_alphabet(tmp_path: Path) -> None:
    save(tmp_path, "khan")
    split = data.fold("khan", 0, tmp_path, 20)
    assert sorted(set(split.y)) == [0, 1, 2, 3] and split.y.dtype.kind == "i"
    np.savez(tmp_path / "khan.npz", x=np.ones((6, 2)), y=np.array(list("ababab")))
    with pytest.raises(ValueError, match="has 2 classes in y, expected 4"):
        data.fold("khan", 0, tmp_path, 2)


# -- references


def regression(seed: int) -> tuple[Any, Any]:
    """Features of unit variance, and targets of two large effects, a mean and unit noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 12))
    x = (x - x.mean(0)) / x.std(0)
    return x, 5.0 + 3.0 * x[:, 0] - 2.0 * x[:, 1] + rng.standard_normal(200)


@pytest.mark.parametrize("method", ["relaxed lasso", "mcp"])
def test_large_effects_are_those_of_least_squares(method: str) -> None:
    x, y = regression(0)
    found, selected = linear_references.fit_linear(method, x, y, x)
    assert selected[:2].all()
    features = np.column_stack([np.ones(200), x[:, selected]])
    expected = features @ np.linalg.lstsq(features, y, rcond=None)[0]
    # Small effects are shrunk by MCP: each by less than its standard error, about 0.07.
    np.testing.assert_allclose(found, expected, atol=1e-8 if method == "relaxed lasso" else 0.5)


@pytest.mark.parametrize("classes", [2, 3])
def test_relaxed_lasso_of_classes_keeps_an_obvious_gene(classes: int) -> None:
    rng = np.random.default_rng(1)
    y = np.arange(90) % classes
    x = rng.standard_normal((90, 8))
    x[:, 3] = y + 0.01 * x[:, 3]
    x = (x - x.mean(0)) / x.std(0)
    chances, selected = class_references.fit_classes("relaxed lasso", x, y, x)
    assert selected[3] and chances.shape == (90, classes)
    np.testing.assert_allclose(chances.sum(1), 1.0)
    assert (chances.argmax(1) == y).all()


@pytest.mark.parametrize(("classes", "share"), [(2, 0.3), (3, 0.3), (3, 1.0)])
def test_elastic_net_meets_its_optimality_conditions(classes: int, share: float) -> None:
    rng = np.random.default_rng(3)
    y = np.arange(30) % classes
    x = rng.standard_normal((30, 60)) + y[:, None] * (np.arange(60) < 3)
    for inverse_penalty, (weights, intercepts) in zip(
        (0.1, 1.0), net.net_path(x, y, (0.1, 1.0), share), strict=True
    ):
        logits = x @ weights + intercepts
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        residual = inverse_penalty * (np.eye(classes)[y] - chance)
        slope = x.T @ residual - (1.0 - share) * weights
        kept = weights != 0.0
        assert 0 < kept.sum() < kept.size  # both conditions are looked at
        # The tolerance is that of the last step, from a point that is a little before.
        near = 3 * net.TOLERANCE
        np.testing.assert_allclose(slope[kept], share * np.sign(weights[kept]), atol=near)
        assert (np.abs(slope) < share + near).all()
        np.testing.assert_allclose(residual.sum(0), 0.0, atol=near)


@pytest.mark.slow
@pytest.mark.skipif(not fits.HAS_NUMPYRO, reason="needs numpyro")
def test_horseshoe_with_many_rows_is_least_squares() -> None:
    x, y = regression(2)
    split = data.Split(x[:150], y[:150], x[150:], y[150:], np.arange(12))
    figures = fits.by_horseshoe(0, 0, split, 200).figures
    features = [np.column_stack([np.ones(len(rows)), rows]) for rows in (split.x, split.x_test)]
    found = features[1] @ np.linalg.lstsq(features[0], split.y, rcond=None)[0]
    # Least squares of 13 coefficients adds 13 / 150 to a noise of 1.
    assert figures["loss"] < fits.squared_error(found, split.y_test) + 2 * 13 / 150
    # Of 50 rows 45 are expected to be in the intervals, with a deviation of about 2.1.
    assert figures["coverage"] * 50 > 45 - 4.5 * 2.1
    assert figures["sigma"] == pytest.approx(1.0, abs=4.5 / (2 * 150) ** 0.5)


# -- figures


def test_figures_of_classes_by_hand() -> None:
    chances = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    figures = fits.class_figures(chances, np.array([0, 1, 0]))
    assert figures["loss"] == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 3)
    assert figures["error"] == pytest.approx(1 / 3)


def test_overlap_is_over_pairs_of_folds_of_a_shuffle(tmp_path: Path) -> None:
    selections.begin(tmp_path)
    for seed, method, genes in [
        (0, "a; lasso", [9]),
        (0, "a; lasso", [1, 2, 3]),  # the last line of a fit counts
        (1, "a; lasso", [2, 3, 4, 5]),
        (2, "a; lasso", []),
        (2, "a; gibbs", [1, 2, 3]),
        (5, "a; lasso", [1, 2, 3]),  # another shuffle, where no other fold is there
        (0, "b; mcp", []),
        (1, "b; mcp", []),
    ]:
        selections.add_selection(tmp_path, seed, method, genes)
    selections.begin(tmp_path)  # a second run keeps what is there
    found = selections.read_selections(tmp_path)
    assert selections.overlap(found, "a; lasso") == pytest.approx((2 / 5 + 0 + 0) / 3)
    assert np.isnan(selections.overlap(found, "a; gibbs"))
    assert np.isnan(selections.overlap(found, "b; mcp"))


# -- the script


@pytest.mark.slow
@pytest.mark.tutorial
def test_genes_at_smoke_size(tmp_path: Path) -> None:
    names = ("riboflavin", "alon", "khan")
    for name in names:
        save(tmp_path, name)
    command = ("--smoke", "--data-dir", str(tmp_path), "--data", *names, "--out", "results")
    run_script("reproduce/genes.py", *command, cwd=tmp_path)
    rows = {row["method"]: row for row in read_rows(tmp_path / "results" / "replicates.csv")}
    assert list(rows) == [f"{name}; {method}" for name in names for method in fits.methods_of(name)]
    assert all(float(row["loss"]) > 0.0 for row in rows.values())
    assert 0.0 <= float(rows["riboflavin; gibbs"]["coverage"]) <= 1.0
    for name in names:
        assert 0.0 <= float(rows[f"{name}; gibbs"]["halves"]) <= 1.0
    chosen = selections.read_selections(tmp_path / "results")
    for (_, method), genes in chosen.items():
        if not method.endswith("gibbs"):
            assert len(genes) == float(rows[method]["genes"])
    assert "--data-dir DATA" in (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
