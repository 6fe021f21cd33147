# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The table of all rows: that the command runs, and what it writes."""

from __future__ import annotations

import csv
import importlib.util

import pytest

from . import table


@pytest.mark.parametrize("row", table.ROWS)
def test_every_row_runs_and_is_written(row, tmp_path):
    text = table.main(["--smoke", "--workloads", "L", "--rows", row, "--out", str(tmp_path)])
    assert f"| {table.ROWS[row].title} |" in text
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    with (tmp_path / "L.csv").open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert line["row"] == row
    installed = table.ROWS[row].package is None or importlib.util.find_spec(table.ROWS[row].package)
    assert (line["turns"] == "2") == bool(installed)


def test_a_row_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    text = table.main(["--smoke", "--workloads", "L", "--rows", "posteriors", "sgd"])
    assert "| posteriors, sghmc | not installed |" in text
    assert text.count("not installed") == 1


def test_the_table_has_the_workloads_of_earlier_runs_in_its_folder(tmp_path):
    arguments = ["--smoke", "--rows", "sgd", "--out", str(tmp_path), "--workloads"]
    table.main([*arguments, "M"])
    text = table.main([*arguments, "L"])
    assert text.index("**L:") < text.index("**M:")
