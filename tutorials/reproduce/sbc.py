# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Simulation-based calibration: ranks of true weights among draws from their posterior.

    python tutorials/reproduce/sbc.py --jobs 2 --out results

Weights come from the prior, data from the weights, draws from SGLD or SGHMC, at hyperparameters
that are the truth. Ranks of a correct sampler are uniform. Two rows are wrong on purpose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from calibration.ranks import FIGURES, SETTINGS, SMOKE, Protocol, run_one, settings_of
from calibration.ranks_report import write_report
from common.experiment import run_experiment
from common.options import new_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING",
        help=f"rows to run, of {', '.join(SETTINGS)} (default: all)")  # fmt: skip
    add("--sets", type=int, help=f"number of data sets (default {Protocol().sets})")
    add("--seed", type=int, default=0, help="of the random numbers (default 0)")
    add("--jobs", type=int, default=1, help="rows to run at the same time (default 1)")
    add("--out", type=Path, help="where results go (default sbc_output, or _smoke)")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = Path("sbc_smoke" if args.smoke else "sbc_output")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every row is there."""
    args = parse(argv)
    protocol = SMOKE if args.smoke else Protocol()
    if args.sets is not None:
        protocol = replace(protocol, sets=args.sets)
    return run_experiment(
        "sbc.py",
        argv,
        args,
        tasks=[(args.seed, name) for name in args.settings],
        figures=FIGURES,
        run_one=partial(run_one, protocol=protocol),
        settings_of=partial(settings_of, protocol=protocol),
        write_report=partial(write_report, protocol=protocol),
        image="ranks.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
