# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Large p, small n: the regression experiment of Deng, Zhang, Liang and Lin (2019), with every
baseline, over replicates.

    python tutorials/reproduce/large_p_small_n.py --jobs 2 --out results

100 observations, 1000 features, three of which matter. Sparse regression by SGLD-SA, at the
paper's settings and at ours, stands beside least squares that is told the answer, exact ridge,
lasso, relaxed lasso, MCP, the horseshoe by NUTS, and plain SGLD and SGHMC.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.experiment import run_experiment
from common.options import new_parser
from sparse_linear.methods import ALL, FIGURES, METHODS, SMOKE, Protocol, run_one, settings_of
from sparse_linear.report import write_report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--replicates", type=int, help="number of data sets (default 20; 2 with --smoke)")
    add("--first-seed", type=int, default=0, help="seed of the first data set (default 0)")
    add("--seeds", type=int, nargs="+", help="these seeds, in place of the two options above")
    add("--methods", nargs="+", default=list(METHODS), choices=list(ALL), metavar="METHOD",
        help=f"rows to run, of {', '.join(ALL)} (default: without the last seven)")  # fmt: skip
    add("--horseshoe-replicates", type=int, metavar="N",
        help="run the horseshoe, which is the slowest, on the first N data sets only")  # fmt: skip
    add("--steps", type=int,
        help="length of every SG-MCMC chain, a fifth of it warm-up "
        f"(default {Protocol().steps}; the paper's is 500000)")  # fmt: skip
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, help="where results go (default large_p_small_n_output, or _smoke)")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args = parser.parse_args(argv)
    if args.replicates is None:
        args.replicates = 2 if args.smoke else 20
    if args.out is None:
        args.out = Path("large_p_small_n_smoke" if args.smoke else "large_p_small_n_output")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    args = parse(argv)
    protocol = SMOKE if args.smoke else Protocol()
    if args.steps is not None:
        protocol = replace(protocol, steps=args.steps)
    seeds = args.seeds or range(args.first_seed, args.first_seed + args.replicates)
    slow = set(list(seeds)[: args.horseshoe_replicates])
    tasks = [
        (seed, name)
        for seed in seeds
        for name in args.methods
        if name != "horseshoe" or seed in slow
    ]
    return run_experiment(
        "large_p_small_n.py",
        argv,
        args,
        tasks=tasks,
        figures=FIGURES,
        run_one=partial(run_one, protocol=protocol),
        settings_of=partial(settings_of, protocol=protocol),
        write_report=partial(write_report, protocol=protocol),
        image="test_mse.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
