# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Modules of the tutorials, runs of their scripts, and rows of their results."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "tutorials"


def require_packages(*packages: str) -> None:
    """
    Make the modules of the reproduction scripts importable; skip the calling test module if a
    package is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the tutorials need {package}: .[tutorials]", allow_module_level=True)
    sys.path.insert(0, str(TUTORIALS / "reproduce"))


def run_script(script: str, *arguments: str, cwd: Path) -> str:
    """Run a tutorial as a reader would, on one thread, and return its output."""
    finished = subprocess.run(
        [sys.executable, str(TUTORIALS / script), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
