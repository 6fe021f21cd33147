# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Effects of v0, v1, the temperature, delta's prior and omega, one changed at a time.

    python tutorials/reproduce/choosing.py --jobs 2 --out results

Sparse regressions with 100 rows and 100 features, five of which matter, by SGHMC-SA. The page on
choosing settings reads its table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from choices.fits import FIGURES, METHODS, SMOKE, Protocol, run_one, settings_of
from choices.report import write_report
from common.experiment import run_experiment
from common.options import new_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--sets", type=int, help="number of data sets (default 6; 2 with --smoke)")
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, help="where results go (default choosing_output, or _smoke)")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args = parser.parse_args(argv)
    if args.sets is None:
        args.sets = 2 if args.smoke else 6
    if args.out is None:
        args.out = Path("choosing_smoke" if args.smoke else "choosing_output")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    args = parse(argv)
    protocol = SMOKE if args.smoke else Protocol()
    return run_experiment(
        "choosing.py",
        argv,
        args,
        tasks=[(seed, name) for seed in range(args.sets) for name in METHODS],
        figures=FIGURES,
        run_one=partial(run_one, protocol=protocol),
        settings_of=partial(settings_of, protocol=protocol),
        write_report=partial(write_report, protocol=protocol),
        image="choices.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
