# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Regression on UCI tables: the experiment of Deng, Zhang, Liang and Lin (2019), all six rows, and our
own configuration, over the paper's 20 splits.

    python tutorials/reproduce/uci.py --data-dir DATA --jobs 2 --out results

DATA holds boston.csv, yacht.csv, energy.csv, wine.csv, concrete.csv and, if asked for, power.csv:
a header line, numbers only, the rows in the order of the original files (the split depends on it),
the target last. Those are, from https://archive.ics.uci.edu: Yacht Hydrodynamics, Energy Efficiency
(inputs X1 to X8, target Y2), Wine Quality (red), Concrete Compressive Strength, Combined Cycle
Power Plant (first sheet); and Boston Housing, from http://lib.stat.cmu.edu/datasets/boston.

Every finished fit is a line of ``OUT/replicates.csv`` at once. Stop the run with Ctrl-C whenever
you like and start it again with the same command: it goes on where it stopped. ``table.csv``,
``table.md`` and ``rmse.png`` are written at the end of every run, also of one that was stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from common.harness import Replicates, SettingsChanged, run_all
from common.options import add_options, settle
from uci_regression.data import SEEDS, TABLES
from uci_regression.methods import FIGURES, METHODS, run_one, settings_text
from uci_regression.report import write_report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    tables = [name for name in TABLES if name != "power"]
    parser.add_argument("--tables", nargs="+", default=tables, choices=list(TABLES),
        metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all but power)")  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS),
        metavar="METHOD", help=f"rows, of {', '.join(METHODS)} (default: all)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.download:
        parser.error("--download: not offered, the tables come from several places; see above")
    if args.device != "cpu":
        parser.error("--device: cpu only, a step of this network is too small for an accelerator")
    settle(parser, args, "uci", seeds=SEEDS, smoke_seeds=SEEDS[:2])
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    args = parse(argv)
    tasks = [
        (seed, f"{table}/{method}")
        for seed in args.seeds
        for table in args.tables
        for method in args.methods
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    interrupted, failed = False, []
    try:
        replicates = Replicates(args.out / "replicates.csv", FIGURES)
        failed = run_all(
            tasks,
            partial(run_one, data_dir=args.data_dir, smoke=args.smoke),
            partial(settings_text, smoke=args.smoke),
            replicates,
            args.jobs,
        )
    except SettingsChanged as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True
        print("\nstopped; the same command goes on from here", file=sys.stderr)
    if replicates.rows:
        command = shlex.join(["python", "tutorials/reproduce/uci.py", *argv])
        print(write_report(replicates.rows, args.out, command))
        print(f"\nreplicates.csv, table.csv, table.md and rmse.png are in {args.out}")
    for (seed, name), error in failed:
        print(f"failed: {name}, seed {seed}: {error}", file=sys.stderr)
    return 130 if interrupted else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
