# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs (seed, name) tasks, in parallel processes if asked, and keeps every finished one at once.

The file ``replicates.csv`` is the state: a task that stands in it is never run again, so a run that
was interrupted goes on where it stopped, and one more name or seed costs only itself. Every line
holds the settings it was made with, and lines of other settings than now are refused.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

Row = dict[str, str]
Task = tuple[int, str]
RunOne = Callable[[str, int], dict[str, float]]
SettingsOf = Callable[[str], str]


class SettingsChanged(RuntimeError):
    """Rows of other settings, or of other columns, are in the way."""


class Replicates:
    """
    The rows finished so far, in a CSV file that only ever grows. Its columns are ``seed``,
    ``method``, the figures, and ``settings``.

    :param path: the file; it need not exist, its folder must.
    :param figures: names of the numbers that a task gives; one that it leaves out is nan.
    :raises SettingsChanged: if the file has other columns.
    """

    def __init__(self, path: Path, figures: Sequence[str]) -> None:
        self.path = path
        self.figures = tuple(figures)
        self.columns = ["seed", "method", *figures, "settings"]
        self.rows: list[Row] = []
        if path.exists():
            self._drop_torn_line()
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.rows = list(reader)
                found = reader.fieldnames
            if found is not None and list(found) != self.columns:
                raise SettingsChanged(
                    f"{path} has the columns\n    {', '.join(found)}\nand now they would be\n"
                    f"    {', '.join(self.columns)}\nChoose another --out."
                )

    def _drop_torn_line(self) -> None:
        """A machine that went down in mid-write leaves a last line without an end."""
        text = self.path.read_bytes()
        if text and not text.endswith(b"\n"):
            self.path.write_bytes(text[: text.rfind(b"\n") + 1])

    def finished(self, settings_of: SettingsOf) -> set[Task]:
        """
        The tasks that need not be run.

        :param settings_of: from a name to the settings it would be made with now. A KeyError means
            a name that is not known, whose rows are left alone.
        :raises SettingsChanged: if a row was made with other settings than now.
        """
        for row in self.rows:
            try:
                wanted = settings_of(row["method"])
            except KeyError:
                continue
            if row["settings"] != wanted:
                raise SettingsChanged(
                    f"{self.path} holds {row['method']!r} made with\n    {row['settings']}\n"
                    f"and now it would be made with\n    {wanted}\n"
                    "Choose another --out, or delete those rows."
                )
        return {(int(row["seed"]), row["method"]) for row in self.rows}

    def add(self, task: Task, figures: dict[str, float], settings: str) -> None:
        """Appends a finished task, and has it on the disk before it returns."""
        seed, name = task
        row = {"seed": str(seed), "method": name, "settings": settings}
        row |= {figure: format(value, ".6g") for figure, value in figures.items()}
        new = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="nan")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append({**dict.fromkeys(self.columns, "nan"), **row})


def run_all(
    tasks: Sequence[Task],
    run_one: RunOne,
    settings_of: SettingsOf,
    replicates: Replicates,
    jobs: int = 1,
) -> list[tuple[Task, str]]:
    """
    Runs the tasks that are not finished, under one progress bar. Ctrl-C stops it; what is finished
    is kept. A task that fails does not stop the others, and is tried again by the next run.

    :param tasks: (seed, name) pairs, in the order in which they are started.
    :param run_one: makes one task: from name and seed to its figures. Picklable if jobs > 1.
    :param settings_of: from a name to what decides its figures beside the seed, as one line of
        text; see :meth:`Replicates.finished`.
    :param Replicates replicates: where finished tasks go.
    :param int jobs: processes; 1 runs in this one.
    :returns: the tasks that failed, each with its error.
    :raises SettingsChanged: if finished rows were made with other settings.
    """
    finished = replicates.finished(settings_of)
    todo = [task for task in tasks if task not in finished]
    failed: list[tuple[Task, str]] = []
    with tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="fit") as bar:
        for task, outcome in _outcomes(todo, run_one, jobs):
            if isinstance(outcome, str):
                failed.append((task, outcome))
            else:
                replicates.add(task, outcome, settings_of(task[1]))
            bar.set_postfix_str(f"{task[1]}, seed {task[0]}")
            bar.update()
    return failed


def _outcomes(
    todo: Sequence[Task], run_one: RunOne, jobs: int
) -> Iterator[tuple[Task, dict[str, float] | str]]:
    """Every task with its figures, or with its error as text, as they come."""
    attempt = partial(_attempt, run_one=run_one)
    if jobs == 1:
        yield from map(attempt, todo)
        return
    spawn = multiprocessing.get_context("spawn")
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the workers
    with spawn.Pool(jobs, signal.signal, ignore_interrupt, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(attempt, todo)


def _attempt(task: Task, run_one: RunOne) -> tuple[Task, dict[str, float] | str]:
    seed, name = task
    try:
        return task, run_one(name, seed)
    except Exception as error:
        return task, f"{type(error).__name__}: {error}"
