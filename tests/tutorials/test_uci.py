# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Regression on UCI tables: data, model, rows, and the script, on tables made here."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tutorial_runs import read_rows, require_packages

import pyro_aeb as aeb
from pyro_aeb.model.inspection import inspect_model

require_packages("h5netcdf", "matplotlib", "pandas", "sklearn", "tqdm")
data = importlib.import_module("uci_regression.data")
network = importlib.import_module("uci_regression.network")
methods = importlib.import_module("uci_regression.methods")
report = importlib.import_module("uci_regression.report")
uci = importlib.import_module("uci")


# -- data


def test_seeds_are_the_papers() -> None:
    digits = [str(digit) * times for digit in range(5, 10) for times in (1, 2, 3, 4)]
    assert [str(seed) for seed in data.SEEDS] == digits and len(digits) == 20


@pytest.mark.parametrize("seed", [5, 9999])
def test_a_split_is_scikit_learns(seed: int) -> None:
    rows = 103
    X, y = np.arange(2.0 * rows).reshape(rows, 2), np.arange(float(rows))
    order = np.random.RandomState(seed).permutation(rows)  # what train_test_split takes rows by
    test = int(np.ceil(0.1 * rows))
    found = data.split(X, y, seed)
    assert found.y_test.tolist() == order[:test].tolist()
    assert found.y.tolist() == order[test:].tolist()


def test_inputs_are_standardised_by_the_training_rows() -> None:
    X, y = data.made_up_table(rows=60, features=3)
    X[:, 2] = 7.0  # a constant column must not divide by zero
    found = data.split(X, y, 6)
    # float32: means of some 50 numbers of size 1 are off by 1e-7 or so.
    torch.testing.assert_close(found.X.mean(0), torch.zeros(3), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(
        found.X.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-6, rtol=0.0
    )
    test = np.random.RandomState(6).permutation(60)[:6]
    train = np.setdiff1d(np.arange(60), test)
    expected = (X[test, 0] - X[train, 0].mean()) / X[train, 0].std()
    np.testing.assert_allclose(found.X_test[:, 0], expected, rtol=1e-5)


def test_a_table_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "boat.csv"
    path.write_text("length,width,drag\n1,2,3\n4,5,6.5\n")
    X, y = data.read_table(path)
    assert X.tolist() == [[1.0, 2.0], [4.0, 5.0]] and y.tolist() == [3.0, 6.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", "expected numbers only"),
        ("a,b\n1,2\n3,nan\n", "line 3"),
        ("a\n1\n2\n", "expected inputs and a target"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        data.read_table(path)
    with pytest.raises(FileNotFoundError, match="expected a CSV file with a header line"):
        data.read_table(tmp_path / "none.csv")


# -- model and predictions


def test_predictions_are_those_of_the_torch_network() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))
    X = torch.randn(5, 3)
    weights = [parameter.detach() for parameter in layers.parameters()]
    draw = {"W1": weights[0], "b1": weights[1], "w2": weights[2][0], "b2": weights[3][0]}
    two = {name: torch.stack([value, 2.0 * value]) for name, value in draw.items()}
    found = network.predictions(two, X)
    assert found.shape == (2, 5)
    torch.testing.assert_close(found[0], layers(X)[:, 0].detach())


def test_density_and_coverage_of_a_mixture_by_hand() -> None:
    means, scales = torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.tensor([[1.0], [1.0]])
    y = torch.tensor([1.0, 0.0])
    # (phi(1) + phi(1)) / 2 and (phi(0) + phi(4)) / 2
    phi = np.exp(-0.5 * np.array([1.0, 0.0, 16.0])) / np.sqrt(2 * np.pi)
    expected = np.log([phi[0], (phi[1] + phi[2]) / 2])
    np.testing.assert_allclose(network.log_density(means, scales, y), expected, rtol=1e-5)
    # 1 is the mixture's median. The cdf at 0 is (1/2 + Phi(-4)) / 2, or 1/4.
    assert network.covered(means, scales, y, 0.4).tolist() == [True, False]
    assert network.covered(means, scales, y, 0.6).tolist() == [True, True]


@pytest.mark.parametrize(("row", "shared"), [("a-sghmc-sa", False), ("ours", True)])
def test_which_rows_learn_the_noise(row: str, shared: bool) -> None:
    X, y = torch.randn(20, 3), torch.randn(20)
    model = network.Network(methods.settings_for(row, "boston").prior, features=3)
    structure = inspect_model(model, (X, y), {"batch_size": 10}, adapt=True, links=None)
    assert {block.name for block in structure.sparse} == {"W1", "w2"}
    assert {delta.site for delta in structure.deltas} == {"delta1", "delta2"}
    (sigma,) = structure.sigmas
    assert sigma.site == "sigma2" and ("y" in sigma.likelihoods) == shared


# -- rows


def test_the_six_rows_differ_in_what_their_names_say() -> None:
    for table, (tau, v0) in methods.TAU_V0.items():
        rows = {row: methods.settings_for(row, table) for row in methods.PAPER_ROWS}
        assert len({settings.prior for settings in rows.values()}) == 1
        assert {settings.draws for settings in rows.values()} == {201}
        for row, settings in rows.items():
            assert settings.prior.v0 == v0 and settings.prior.noise_variance == 0.5
            weight = 0.0 if row.endswith("sghmc") else 1.0 if "-em" in row else methods.OMEGA
            assert settings.weight == weight
            grown = tau * 1.003**10 if row.startswith("a-") else tau
            schedule = settings.tau
            assert (schedule(11) if callable(schedule) else schedule) == pytest.approx(grown)
    with pytest.raises(KeyError):
        methods.settings_for("b-sghmc", "boston")


def test_settings_that_matter_are_in_every_row() -> None:
    texts = [
        methods.settings_text(f"{table}/{row}", smoke=smoke)
        for table in ("boston", "wine")
        for row in methods.PAPER_ROWS
        for smoke in (False, True)
    ]
    assert len(set(texts)) == len(texts) and not any("\n" in text for text in texts)
    for unknown in ("boston/b-sghmc", "mars/sghmc", "sghmc"):
        with pytest.raises(KeyError):
            methods.settings_text(unknown, smoke=False)


def test_a_chain_that_blows_up_starts_again_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def run_chain(X: Any, y: Any, settings: Any, seed: int) -> str:
        seeds.append(seed)
        if len(seeds) < 3:
            raise aeb.NonFiniteError("blown up", step=1, site=None, draws={})
        return "finished"

    monkeypatch.setattr(methods, "run_chain", run_chain)
    outcome = methods.run_until_finite(torch.ones(1, 1), torch.ones(1), methods.OURS, seed=7)
    assert outcome == ("finished", 3)
    assert len(set(seeds)) == 3 and seeds[0] == 7


def test_a_fit_learns_something_and_gives_every_figure() -> None:
    found = data.split(*data.made_up_table(rows=200), 5)
    settings = methods.settings_for("ours", "boston")
    short = methods.replace(settings, draws=40, warmup=20, chains=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", aeb.CollapseWarning)  # caught and counted, not shown
        figures = methods.fit_and_score(found, short, seed=0)
    assert tuple(sorted(figures)) == tuple(sorted(methods.FIGURES))
    assert (figures["draws"], figures["steps"]) == (2 * 20, 2 * 40 * 20)
    # The table's noise is 0.3. The target's standard deviation, which the mean alone would reach,
    # is sqrt(4 + 0.36 + 0.09) = 2.1.
    assert figures["rmse"] < 1.0


# -- report and script


def test_summary_by_hand() -> None:
    columns = dict.fromkeys(methods.FIGURES, "1")
    rows = [
        {**columns, "seed": str(seed), "method": f"{table}/sghmc", "settings": "", "rmse": rmse}
        for seed, table, rmse in ((5, "wine", "4"), (6, "wine", "5"), (7, "wine", "6"),
                                  (5, "boston", "2"))
    ]  # fmt: skip
    summary = report.summarise(rows)
    assert list(summary.index) == [("boston", "sghmc"), ("wine", "sghmc")]
    assert summary.loc[("wine", "sghmc"), "rmse_mean"] == 5.0
    # The standard deviation of 4, 5, 6 is 1.
    assert summary.loc[("wine", "sghmc"), "rmse_se"] == pytest.approx(1 / 3**0.5)
    assert np.isnan(summary.loc[("boston", "sghmc"), "rmse_se"])
    text = report.rmse_table(summary)
    assert "| SGHMC | paper | 2.783 ± 0.109 | 0.731 ± 0.015 |" in text
    assert "|  | average | 2.000 | 5.000 ± 0.577 |" in text


COMMAND = ["--smoke", "--tables", "yacht", "wine", "--methods", "a-sghmc-sa", "ours"]


def test_the_script_runs_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_one = methods.run_one
    made: list[tuple[str, int]] = []

    def interrupted(task: str, seed: int, **options: Any) -> dict[str, float]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((task, seed))
        return run_one(task, seed, **options)

    command = [*COMMAND, "--seeds", "5", "55", "--out", str(tmp_path)]
    monkeypatch.setattr(uci, "run_one", interrupted)
    assert uci.main(command) == 130
    assert len(read_rows(tmp_path / "replicates.csv")) == 3
    monkeypatch.setattr(uci, "run_one", run_one)
    assert uci.main(command) == 0
    rows = read_rows(tmp_path / "replicates.csv")
    expected = [
        (seed, f"{table}/{row}")
        for seed in (5, 55)
        for table in ("yacht", "wine")
        for row in ("a-sghmc-sa", "ours")
    ]
    assert [(int(row["seed"]), row["method"]) for row in rows] == expected
    assert all(np.isfinite(float(row["rmse"])) and float(row["steps"]) > 0 for row in rows)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert f"uci.py {' '.join(command)}" in page and "A-SGHMC-SA" in page
    assert len(read_rows(tmp_path / "table.csv")) == 4
    assert (tmp_path / "rmse.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(uci, "run_one", lambda *_, **__: pytest.fail("a fit was made again"))
    assert uci.main(command) == 0


def test_real_runs_need_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        uci.main(["--out", str(tmp_path)])
    assert "--data-dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        uci.main(["--data-dir", str(tmp_path), "--download", "--out", str(tmp_path)])
    assert "not offered" in capsys.readouterr().err
    missing = ["--data-dir", str(tmp_path), "--seeds", "5", "--tables", "wine", "--methods", "ours"]
    assert uci.main([*missing, "--out", str(tmp_path / "out")]) == 1
    assert "wine.csv is not there" in capsys.readouterr().err
