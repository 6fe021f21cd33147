# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs (seed, method) pairs, in parallel processes if asked, and keeps every finished one at once.

The file ``replicates.csv`` is the state: a pair that stands in it is never run again, so a run that
was interrupted goes on where it stopped, and one more method or seed costs only itself.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from .methods import ALL, Protocol, run_one, settings_of

Row = dict[str, str]
Task = tuple[int, str]

FIGURES = (
    "mse mae mse_last precision_12 recall_12 precision_123 recall_123 selected beta1 beta2 beta3 "
    "coverage_beta1 coverage_beta2 coverage_beta3 coverage_zeros interval_length seconds "
    "ess rhat sigma delta collapsed"
).split()
COLUMNS = ["seed", "method", *FIGURES, "settings"]


class SettingsChanged(RuntimeError):
    """Rows of other settings are in the way."""


class Replicates:
    """
    The rows finished so far, in a CSV file that only ever grows.

    :param path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            self._drop_torn_line()
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def _drop_torn_line(self) -> None:
        """A machine that went down in mid-write leaves a last line without an end."""
        text = self.path.read_bytes()
        if text and not text.endswith(b"\n"):
            self.path.write_bytes(text[: text.rfind(b"\n") + 1])

    def finished(self, protocol: Protocol) -> set[Task]:
        """
        The pairs that need not be run.

        :raises SettingsChanged: if a row of a method was made with other settings than now.
        """
        for row in self.rows:
            wanted = settings_of(row["method"], protocol) if row["method"] in ALL else None
            if wanted is not None and row["settings"] != wanted:
                raise SettingsChanged(
                    f"{self.path} holds {row['method']!r} made with\n    {row['settings']}\n"
                    f"and now it would be made with\n    {wanted}\n"
                    "Choose another --out, or delete those rows."
                )
        return {(int(row["seed"]), row["method"]) for row in self.rows}

    def add(self, task: Task, figures: dict[str, float], settings: str) -> None:
        """Appends a finished pair, and has it on the disk before it returns."""
        seed, method = task
        row = {"seed": str(seed), "method": method, "settings": settings}
        row |= {name: format(value, ".6g") for name, value in figures.items()}
        new = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="nan")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append({**dict.fromkeys(COLUMNS, "nan"), **row})


def run_all(
    tasks: list[Task], protocol: Protocol, replicates: Replicates, jobs: int
) -> list[tuple[Task, str]]:
    """
    Runs the pairs that are not finished, under one progress bar. Ctrl-C stops it; what is finished
    is kept. A pair that fails does not stop the others.

    :param tasks: pairs, in the order in which they are started.
    :param Protocol protocol: sizes and lengths.
    :param Replicates replicates: where finished pairs go.
    :param int jobs: processes.
    :returns: the pairs that failed, each with its error.
    """
    finished = replicates.finished(protocol)
    todo = [task for task in tasks if task not in finished]
    failed: list[tuple[Task, str]] = []
    with tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="fit") as bar:
        for task, outcome in _outcomes(todo, protocol, jobs):
            if isinstance(outcome, str):
                failed.append((task, outcome))
            else:
                replicates.add(task, outcome, settings_of(task[1], protocol))
            bar.set_postfix_str(f"{task[1]}, seed {task[0]}")
            bar.update()
    return failed


def _outcomes(
    todo: list[Task], protocol: Protocol, jobs: int
) -> Iterator[tuple[Task, dict[str, float] | str]]:
    """Every pair with its figures, or with its error as text, as they come."""
    attempt = partial(_attempt, protocol=protocol)
    if jobs == 1:
        yield from map(attempt, todo)
        return
    spawn = multiprocessing.get_context("spawn")
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the workers
    with spawn.Pool(jobs, signal.signal, ignore_interrupt, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(attempt, todo)


def _attempt(task: Task, protocol: Protocol) -> tuple[Task, dict[str, float] | str]:
    seed, method = task
    try:
        return task, run_one(method, seed, protocol)
    except Exception as error:
        return task, f"{type(error).__name__}: {error}"
