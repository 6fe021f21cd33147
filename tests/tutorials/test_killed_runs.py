# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of the image experiments that are killed, and end in the rows of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tutorial_runs import ROOT, TUTORIALS, read_rows, require_packages

require_packages("matplotlib", "pandas", "torchmetrics", "torchvision", "tqdm")

START = """\
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from vision.chain import RunFolder
import torch
torch.set_num_threads(1)
module, left = __import__(sys.argv[2]), int(sys.argv[3])
save_seconds = RunFolder.save_seconds

def kill_at_a_draw(folder):
    global left
    save_seconds(folder)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.save_seconds = kill_at_a_draw
sys.exit(module.main(sys.argv[4:]))
"""
"""Runs a script until its n-th draw is written and its checkpoint is not."""


def run_until(draw: int, script: str, out: Path, *arguments: str) -> bool:
    """Run a script that is killed at a draw, counted from 1; return whether it ended before."""
    folder = str(TUTORIALS / "reproduce")
    finished = subprocess.run(
        [sys.executable, "-c", START, folder, script, str(draw)]
        + ["--smoke", "--out", str(out), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode in (0, -signal.SIGKILL), finished.stderr[-3000:]
    return finished.returncode == 0


def rows_without_times(out: Path) -> list[dict[str, str]]:
    return [{**row, "seconds": ""} for row in read_rows(out / "replicates.csv")]


@pytest.mark.slow
@pytest.mark.tutorial
@pytest.mark.parametrize(
    ("script", "arguments", "rows"),
    [
        # Batch norms, dropout and augmentation; Adam and a chain.
        ("mnist", ["--networks", "net2", "--methods", "dropout", "sghmc-sa"], 2),
        # A dense network and a row, with pruning.
        ("resnet_cifar", ["--methods", "a-sghmc-sa"], 1),
    ],
)
def test_a_killed_run_ends_in_the_same_rows(
    tmp_path: Path, script: str, arguments: list[str], rows: int
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run_until(-1, script, whole, *arguments)
    starts = 1
    while not run_until(3, script, pieces, *arguments):
        starts += 1
        assert starts < 20
    assert starts >= 3
    assert rows_without_times(pieces) == rows_without_times(whole)
    assert len(rows_without_times(whole)) == rows
    for curve in (whole / "curves").glob("*.csv"):
        assert (pieces / "curves" / curve.name).read_bytes() == curve.read_bytes()
    assert not (pieces / "unfinished").exists()
