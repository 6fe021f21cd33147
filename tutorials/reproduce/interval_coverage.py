# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How often 90 % intervals hold the truth, and how far adaptive latents are from the exact posterior.

    python tutorials/reproduce/interval_coverage.py --jobs 2 --out results

Data sets of 60 rows and 20 features, four of which matter. SGHMC-SA stands beside the exact
posterior of the same prior, which a Gibbs sampler draws from, with sigma and delta known and not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from calibration.fits import FIGURES, METHODS, SMOKE, Protocol, run_one, settings_of
from calibration.fits_report import write_report
from common.experiment import run_experiment
from common.options import new_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--sets", type=int, help="number of data sets (default 50; 2 with --smoke)")
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help=f"rows to run, of {', '.join(METHODS)} (default: all)")  # fmt: skip
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, help="where results go (default coverage_output, or _smoke)")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args = parser.parse_args(argv)
    if args.sets is None:
        args.sets = 2 if args.smoke else 50
    if args.out is None:
        args.out = Path("coverage_smoke" if args.smoke else "coverage_output")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    args = parse(argv)
    protocol = SMOKE if args.smoke else Protocol()
    return run_experiment(
        "interval_coverage.py",
        argv,
        args,
        tasks=[(seed, name) for seed in range(args.sets) for name in args.methods],
        figures=FIGURES,
        run_one=partial(run_one, protocol=protocol),
        settings_of=partial(settings_of, protocol=protocol),
        write_report=partial(write_report, protocol=protocol),
        image="against_exact.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
