# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How near sampled latents are to the exact posterior, beside those of stochastic approximation.

    python tutorials/reproduce/gibbs.py --out results

Undecided weights and coverage on small regressions; a thousand features; logistic regression;
minibatches; sigma against temperature and pruning; the time of a step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.experiment import command_line
from common.harness import Replicates, run_all
from common.options import new_parser
from gibbs_posterior.problems import FIGURES, METHODS, run_one, settings_of
from gibbs_posterior.report import write_report

SETS = {"coverage": 30, "wide": 10, "logistic": 5, "batches": 1, "sigma": 1, "cost": 1}
"""Data sets of each kind of problem."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--problems", nargs="+", default=list(SETS), choices=list(SETS), metavar="PROBLEM",
        help=f"of {', '.join(SETS)} (default: all)")  # fmt: skip
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, help="where results go (default gibbs_output, or _smoke)")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = Path("gibbs_smoke" if args.smoke else "gibbs_output")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = [
        (seed, f"{problem}; {method}")
        for kind in args.problems
        for seed in range(1 if args.smoke else SETS[kind])
        for problem, methods in METHODS.items()
        if problem.split()[0] == kind
        for method in methods
    ]
    replicates = Replicates(args.out / "replicates.csv", FIGURES)
    failed = run_all(
        tasks,
        partial(run_one, smoke=args.smoke),
        partial(settings_of, smoke=args.smoke),
        replicates,
        args.jobs,
    )
    if replicates.rows:
        print(write_report(replicates.rows, args.out, command_line("gibbs.py", argv)))
    for (seed, name), error in failed:
        print(f"failed: {name}, seed {seed}: {error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
