# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The convergence theorem of Deng, Zhang, Liang and Lin (2019), measured against its exact limit.

    python tutorials/reproduce/convergence.py --jobs 2 --out results

Hundreds of chains of a model whose limit theta* quadrature finds run side by side. The mean of
||theta_k - theta*||^2 stands against the weight omega_k for four rates of decay, a constant weight
and a weight of 1; the law of the weights stands against exp(tau Q(.; theta*)) for step sizes that
shrink. Further runs leave out one condition of the theorem each.
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
from theorem.report import write_report
from theorem.runs import FIGURES, GROUPS, SMOKE, Protocol, run_one, settings_of
from theorem.settings import SETTINGS


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING",
        help=f"runs to make, of {', '.join(SETTINGS)} (default: all)")  # fmt: skip
    add("--chains", type=int, help=f"chains of a run, a multiple of {GROUPS} "
        f"(default {Protocol().chains}; {SMOKE.chains} with --smoke)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the random numbers (default 0)")
    add("--jobs", type=int, default=1, help="runs at the same time (default 1)")
    add("--out", type=Path, help="where results go (default convergence_output, or _smoke)")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args = parser.parse_args(argv)
    if args.chains is not None and (args.chains < 2 * GROUPS or args.chains % GROUPS):
        parser.error(f"--chains is {args.chains}, expected a multiple of {GROUPS} above it")
    if args.out is None:
        args.out = Path("convergence_smoke" if args.smoke else "convergence_output")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every run is there."""
    args = parse(argv)
    protocol = SMOKE if args.smoke else Protocol()
    if args.chains is not None:
        protocol = replace(protocol, chains=args.chains)
    return run_experiment(
        "convergence.py",
        argv,
        args,
        tasks=[(args.seed, name) for name in args.settings],
        figures=FIGURES,
        run_one=partial(run_one, protocol=protocol),
        settings_of=partial(settings_of, protocol=protocol),
        write_report=partial(write_report, protocol=protocol),
        image="rates.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
