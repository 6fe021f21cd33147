# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``tests/tools/repeat_suite.py`` finds a test that passes in one run and fails in another."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "tools" / "repeat_suite.py"

TESTS = """
from pathlib import Path

def test_steady():
    assert True

def test_flaky():
    seen = Path(__file__).with_suffix(".seen")
    try:
        assert seen.exists()
    finally:
        seen.touch()
"""


def run_repeatedly(test: Path, runs: int, out: Path) -> tuple[subprocess.CompletedProcess, list]:
    """What the script says, and its rows; without the other plugins, which take seconds to load."""
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "-p xdist",
    }
    options = ["--runs", str(runs), "--processes", "0", "--out", out]
    command = [sys.executable, SCRIPT, *options, test]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    with (out / "runs.csv").open(newline="") as file:
        return done, list(csv.DictReader(file))


def test_a_flaky_test_is_found(tmp_path):
    test = tmp_path / "test_two.py"
    test.write_text(TESTS)
    done, rows = run_repeatedly(test, 2, tmp_path / "flaky")
    assert done.returncode == 1, done.stderr
    assert [(row["passed"], row["failed"]) for row in rows] == [("1", "1"), ("2", "0")]
    assert rows[0]["failures"].endswith("test_two::test_flaky")
    assert rows[0]["outcomes"] != rows[1]["outcomes"]
    # From now on it passes.
    done, steady = run_repeatedly(test, 1, tmp_path / "steady")
    assert done.returncode == 0, done.stderr
    assert steady[0]["outcomes"] == rows[1]["outcomes"]


def test_a_run_that_did_not_reach_its_end_is_no_row(tmp_path):
    empty = tmp_path / "test_none.py"
    empty.write_text("")
    done, rows = run_repeatedly(empty, 1, tmp_path)
    assert done.returncode == 1 and not rows
    assert "pytest has ended with 5" in done.stderr
