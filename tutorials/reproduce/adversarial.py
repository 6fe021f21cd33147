# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Adversarial images: how accuracy falls when every pixel moves against the predicted class, for the
four methods of ``mnist.py``.

    python tutorials/reproduce/mnist.py --data-dir DATA --preset cpu --out mnist_output
    python tutorials/reproduce/adversarial.py --data-dir DATA --draws mnist_output

The first command stores posterior draws, the second attacks their average: images move by zeta in
the direction of the sign of the gradient of the log probability of the predicted class, against it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.experiment import run_experiment
from common.options import add_options, new_parser, settle
from mnist_networks import attack_report, training
from mnist_networks.attack import FIGURES, Attack, run_one, stored_rows
from mnist_networks.protocol import METHODS, NETWORKS, PRESETS


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_options(parser)
    add = parser.add_argument
    add("--draws", type=Path, default=Path("mnist_output"),
        help="the folder of a run of mnist.py (default mnist_output)")  # fmt: skip
    add("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS),
        metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default all)")  # fmt: skip
    add("--images", type=int, default=10_000,
        help="attack the first so many test images (default all 10000)")  # fmt: skip
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of predictions")
    args = parser.parse_args(argv)
    settle(parser, args, "adversarial", seeds=())
    if args.smoke:
        args.draws, args.networks = args.out, ["net1"]
    return args


def train_for_smoke(args: argparse.Namespace) -> None:
    """Stands in for a run of ``mnist.py``."""
    args.out.mkdir(parents=True, exist_ok=True)
    job = training.Job(PRESETS["smoke"], args.data_dir, args.download, args.device, args.out)
    for method in METHODS:
        training.run_one(f"mnist net1 {method}", 0, job)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every row is there."""
    args = parse(argv)
    if args.smoke:
        train_for_smoke(args)
    folder = args.draws / "draws"
    tasks = [
        (seed, str(row))
        for seed, row in stored_rows(folder)
        if row.network in args.networks and (not args.seeds or seed in args.seeds)
    ]
    if not tasks:
        print(f"there are no draws in {folder}; run mnist.py first", file=sys.stderr)
        return 2
    attack = Attack(folder, args.data_dir, args.download, args.device, args.images, args.precision)
    return run_experiment(
        "adversarial.py",
        argv,
        args,
        tasks=tasks,
        figures=FIGURES,
        run_one=partial(run_one, attack=attack),
        settings_of=attack.settings_of,
        write_report=attack_report.write,
        image="curves.png",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
