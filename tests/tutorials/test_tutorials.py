# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The tutorials run at smoke size, and an interrupted reproduction loses nothing."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tutorial_runs import read_rows, require_packages, run_script

require_packages("h5netcdf", "matplotlib", "pandas", "scipy", "skglm", "sklearn", "tqdm")
experiment = importlib.import_module("common.experiment")
harness = importlib.import_module("common.harness")
tables = importlib.import_module("common.tables")
methods = importlib.import_module("sparse_linear.methods")
report = importlib.import_module("sparse_linear.report")
large_p_small_n = importlib.import_module("large_p_small_n")


def test_pages_have_short_lines_of_prose(tmp_path: Path) -> None:
    words, wide = "word " * 30, "x" * 130
    code = f"```bash\n{words}\n```\n\n    python {words}\n\n| {wide} |\n"
    tables.write_page(tmp_path / "table.md", f"# A\n\n{words}\n- `a`: {words}\n\n{code}")
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.endswith(code)
    prose = page.removesuffix(code).splitlines()
    lines = [line.split() for line in prose if line]
    assert max(map(len, prose)) <= 120 and sum(map(len, lines)) == 2 + 30 + 2 + 30
    assert [len(line) for line in prose if not line.strip()] == [0, 0]
    assert prose[-2].startswith("  word")  # still in the item


# -- the harness: every finished fit is kept, and never made again

FAST = ["oracle", "ridge"]
TASKS = [(seed, name) for seed in (0, 1) for name in FAST]


def rows_in(path: Path) -> Any:
    return harness.Replicates(path, methods.FIGURES)


def run_all(
    path: Path, run_one: Any = methods.run_one, protocol: Any = methods.SMOKE
) -> list[tuple[tuple[int, str], str]]:
    """Runs the tasks that are not in the file; returns those that failed."""
    settings_of = partial(methods.settings_of, protocol=protocol)
    return harness.run_all(TASKS, partial(run_one, protocol=protocol), settings_of, rows_in(path))


def test_a_second_run_makes_no_fit(tmp_path: Path) -> None:
    path = tmp_path / "replicates.csv"
    assert run_all(path) == []
    before = path.read_bytes()
    assert run_all(path, lambda *_, **__: pytest.fail("a finished fit was made again")) == []
    assert path.read_bytes() == before
    assert [(int(row["seed"]), row["method"]) for row in read_rows(path)] == TASKS


def test_an_interrupt_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, str]] = []
    run_one = methods.run_one

    def counted(name: str, seed: int, protocol: Any) -> dict[str, float]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((seed, name))
        return run_one(name, seed, protocol)

    monkeypatch.setattr(large_p_small_n, "run_one", counted)
    command = ["--smoke", "--seeds", "0", "1", "--methods", *FAST, "--out", str(tmp_path)]
    assert large_p_small_n.main(command) == 130
    assert len(read_rows(tmp_path / "replicates.csv")) == 3
    assert (tmp_path / "table.md").exists()
    monkeypatch.setattr(large_p_small_n, "run_one", run_one)
    assert large_p_small_n.main(command) == 0
    rows = read_rows(tmp_path / "replicates.csv")
    assert [(int(row["seed"]), row["method"]) for row in rows] == TASKS


def test_a_failed_fit_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    def failing(name: str, seed: int, protocol: Any) -> dict[str, float]:
        if (seed, name) == (0, "ridge"):
            raise ArithmeticError("no luck")
        return methods.run_one(name, seed, protocol)

    path = tmp_path / "replicates.csv"
    assert run_all(path, failing) == [((0, "ridge"), "ArithmeticError: no luck")]
    assert len(read_rows(path)) == 3
    assert run_all(path) == []
    assert len(read_rows(path)) == 4


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "replicates.csv"
    run_all(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert len(rows_in(path).rows) == 3
    run_all(path)
    assert len(read_rows(path)) == 4


def test_rows_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "replicates.csv"
    run_all(path)
    with pytest.raises(
        harness.SettingsChanged, match=r"holds 'oracle' made with(.|\n)*another --out"
    ):
        run_all(path, protocol=methods.Protocol())


def test_settings_that_matter_are_in_every_row() -> None:
    short, long = methods.Protocol(steps=1000), methods.Protocol(steps=2000)
    for name in ("sgld", "sghmc", "sgld-em", "sgld-sa", "recommended"):
        assert methods.settings_of(name, short) != methods.settings_of(name, long)
    assert methods.settings_of("mcp", short) == methods.settings_of("mcp", long)


def test_summary_by_hand(tmp_path: Path) -> None:
    replicates = rows_in(tmp_path / "replicates.csv")
    for seed, (lasso, mcp) in enumerate([(4.0, 3.0), (5.0, 5.0), (6.0, np.nan)]):
        replicates.add((seed, "lasso"), {"mse": lasso}, "")
        if not np.isnan(mcp):
            replicates.add((seed, "mcp"), {"mse": mcp}, "")
    summary = report.summarise(replicates.rows)
    assert summary.loc["lasso", "mse_mean"] == 5.0
    # The standard deviation of 4, 5, 6 is 1; of the differences 1, 0 it is sqrt(1/2).
    assert summary.loc["lasso", "mse_se"] == pytest.approx(1 / 3**0.5)
    assert summary.loc["lasso", "difference_mean"] == pytest.approx(0.5)
    assert summary.loc["lasso", "difference_se"] == pytest.approx(0.5)
    assert list(summary["replicates"]) == [3, 2]


# -- the scripts


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--data-dir", "/home/me/data", "--out", "x y"], "--data-dir DATA --out 'x y'"),
        (["--jobs", "2", "--data-dir=/home/me/data"], "--jobs 2 --data-dir=DATA"),
        (["--data-dir", "mnist/", "--data", "mnist"], "--data-dir DATA --data mnist"),
        ([], ""),
    ],
)
def test_a_table_says_the_command_without_where_the_data_were(argv: list[str], shown: str) -> None:
    command = f"python tutorials/reproduce/mnist.py {shown}".strip()
    assert experiment.command_line("mnist.py", argv) == command


@pytest.mark.slow
@pytest.mark.tutorial
def test_reproduction_runs_at_smoke_size(tmp_path: Path) -> None:
    arguments = ("--smoke", "--replicates", "1", "--jobs", "2", "--out", "results")
    printed = run_script("reproduce/large_p_small_n.py", *arguments, cwd=tmp_path)
    results = tmp_path / "results"
    rows = read_rows(results / "replicates.csv")
    assert {row["method"] for row in rows} == set(methods.METHODS)
    assert all(np.isfinite(float(row["mse"])) and float(row["seconds"]) >= 0.0 for row in rows)
    page = (results / "table.md").read_text(encoding="utf-8")
    assert f"large_p_small_n.py {' '.join(arguments)}" in page
    for method in methods.METHODS.values():
        assert f"| {method.label} | 1 |" in page and method.label in printed
    assert len(read_rows(results / "table.csv")) == len(methods.METHODS)
    assert (results / "test_mse.png").read_bytes().startswith(b"\x89PNG")
    before = (results / "replicates.csv").read_bytes()
    run_script("reproduce/large_p_small_n.py", *arguments, cwd=tmp_path)
    assert (results / "replicates.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.tutorial
def test_walkthrough_runs_at_smoke_size(tmp_path: Path) -> None:
    printed = run_script("sparse_regression.py", "--smoke", cwd=tmp_path)
    for line in (
        "beta_1",
        "beta_2",
        "beta_3",
        "features kept",
        "exact ridge",
        "lasso by CV",
        "r_hat",
    ):
        assert line in printed
    out = tmp_path / "sparse_regression_output"
    assert (out / "sparse_regression.png").read_bytes().startswith(b"\x89PNG")
    import h5py

    # A twentieth of the 30,000 steps, of which a tenth is warm-up; a draw every 10 steps.
    draws = (1500 - 150) // 10
    with h5py.File(out / "trace.nc") as trace:
        assert {"posterior", "sample_stats", "adaptation"} <= set(trace)
        assert trace["posterior/beta"].shape == (1, draws, 20)
        assert trace["adaptation/beta_rho"].shape == (1, draws, 20)
