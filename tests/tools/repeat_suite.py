# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs the whole suite many times, to find tests that pass in one run and fail in another.

``python tests/tools/repeat_suite.py --runs 20 --out docs/results/suite`` adds a row a run to
``runs.csv`` as it ends: the commit, the versions, how many tests passed, were skipped and failed,
and the *outcomes*, a digest of what became of every test by its name. Equal digests are equal
outcomes of all tests. It exits with 1 if a test failed or the rows of a commit and its versions
have several digests.

Runs differ in what a test must not depend on: Python's hash seed, which process a test runs in and
after which others, ports, time, and what else the machine does.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
SAME = ("commit", "python", "torch", "arviz")
COLUMNS = (*SAME, "seconds", "passed", "skipped", "failed", "outcomes", "failures")


def outcomes(report: Path) -> dict[str, str]:
    """What became of every test, from a report of pytest's in the format of JUnit."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = "passed" if not kinds else "skipped" if kinds == {"skipped"} else "failed"
    return found


def digest(found: dict[str, str]) -> str:
    lines = "\n".join(f"{name} {outcome}" for name, outcome in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def run(arguments: list[str]) -> dict[str, object]:
    """One run of the suite, as a row."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments, "-q", f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "random"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.monotonic() - began
        if done.returncode not in (0, 1) or not report.exists():  # not a run to its end
            raise SystemExit(f"pytest has ended with {done.returncode}:\n{done.stdout[-5000:]}")
        found = outcomes(report)
    failures = sorted(name for name, outcome in found.items() if outcome == "failed")
    if done.returncode:
        print(done.stdout[-20_000:], flush=True)
    counts = {kind: list(found.values()).count(kind) for kind in ("passed", "skipped", "failed")}
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "commit": described.stdout.strip(),
        "python": platform.python_version(),
        "torch": version("torch").split("+")[0],
        "arviz": version("arviz"),
        "seconds": round(seconds),
        **counts,
        "outcomes": digest(found),
        "failures": " ".join(failures),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs.csv")
    parser.add_argument("--processes", default="2", help="that a run takes (default 2)")
    parser.add_argument("tests", nargs="*", help="some of the tests, as pytest takes them")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "runs.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    for _ in tqdm(range(options.runs), unit="run"):
        row = run(["-n", options.processes, "--dist", "worksteal", *options.tests])
        with table.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        kinds.setdefault(tuple(row[name] for name in SAME), set()).add(row["outcomes"])
    failed = sum(int(row["failed"]) for row in rows)
    odd = [kind for kind, digests in kinds.items() if len(digests) > 1]
    print(f"{len(rows)} runs, {failed} failures; outcomes differ between runs of: {odd or 'none'}")
    return 1 if failed or odd else 0


if __name__ == "__main__":
    sys.exit(main())
