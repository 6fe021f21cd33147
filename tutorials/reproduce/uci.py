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
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from common.experiment import run_experiment
from common.options import add_options, new_parser, settle
from uci_regression.data import SEEDS, TABLES
from uci_regression.methods import FIGURES, METHODS, run_one, settings_text
from uci_regression.report import write_report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
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
    return run_experiment(
        "uci.py",
        argv,
        args,
        tasks=tasks,
        figures=FIGURES,
        run_one=partial(run_one, data_dir=args.data_dir, smoke=args.smoke),
        settings_of=partial(settings_text, smoke=args.smoke),
        write_report=write_report,
        image="rmse.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
