# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Run the tasks of a reproduction script, keep every finished one, write the tables, and say what
failed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .harness import Replicates, Row, RunOne, SettingsChanged, SettingsOf, Task, run_all
from .tables import write_page

WriteReport = Callable[[list[Row], Path, str], str]

KEPT = """\
Every finished row is a line of OUT/replicates.csv at once. Stop the run with Ctrl-C whenever you
like and start it again with the same command: it goes on where it stopped. Tables and the figure
are written at the end of every run, also of one that was stopped.
"""
"""For the end of a script's ``--help``."""


def run_experiment(
    script: str,
    argv: Sequence[str],
    args: argparse.Namespace,
    *,
    tasks: Sequence[Task],
    figures: Sequence[str],
    run_one: RunOne,
    settings_of: SettingsOf,
    write_report: WriteReport,
    image: str,
) -> int:
    """
    Runs the tasks that are not finished, reports, and returns the script's exit status: 0 if every
    task is done, 1 if some failed, 2 if finished rows are of other settings, 130 after Ctrl-C.

    :param str script: the script's file name.
    :param argv: its command line, for the table.
    :param args: the same, parsed: ``out``, ``jobs`` and, where there are data, ``data_dir``.
    :param tasks: (seed, name) pairs, in the order in which they are started.
    :param figures: names of the numbers that a task gives.
    :param run_one: makes one task: from name and seed to its figures. Picklable if jobs > 1.
    :param settings_of: from a name to its settings; see :meth:`.harness.Replicates.finished`.
    :param write_report: writes ``table.csv``, ``table.md`` and the image from the rows, into a
        folder, with the command in the table; returns what is to be printed.
    :param str image: the file name of the image.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    interrupted, failed = False, []
    try:
        replicates = Replicates(args.out / "replicates.csv", figures)
        failed = run_all(tasks, run_one, settings_of, replicates, args.jobs)
    except SettingsChanged as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True
        print("\nstopped; the same command goes on from here", file=sys.stderr)
    if replicates.rows:
        command = command_line(script, argv)
        print(write_report(replicates.rows, args.out, command))
        print(f"\nreplicates.csv, table.csv, table.md and {image} are in {args.out}")
    for (seed, name), error in failed:
        print(f"failed: {name}, seed {seed}: {error}", file=sys.stderr)
    return 130 if interrupted else int(bool(failed))


def finish(
    replicates: Replicates,
    failed: Sequence[tuple[Task, str]],
    report: Callable[[list[Row], str], str],
    command: str,
) -> int:
    """
    Write ``table.md`` beside the rows and print it, say what failed, and return the exit status.

    :param report: makes the table from the rows and the command line.
    """
    if replicates.rows:
        table = report(replicates.rows, command)
        write_page(replicates.path.parent / "table.md", table)
        print(table)
    for (seed, name), error in failed:
        print(f"failed: {name}, seed {seed}: {error}", file=sys.stderr)
    return int(bool(failed))


def command_line(script: str, argv: Sequence[str]) -> str:
    """
    The command as a reader would repeat it: where the data were is nobody's business, so the value
    of ``--data-dir`` is DATA.
    """
    shown = []
    for before, word in zip(("", *argv), argv, strict=False):
        if before == "--data-dir":
            word = "DATA"
        elif word.startswith("--data-dir="):
            word = "--data-dir=DATA"
        shown.append(word)
    return shlex.join(["python", f"tutorials/reproduce/{script}", *shown])
