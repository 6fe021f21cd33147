# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
MNIST and Fashion-MNIST: the classifiers of Deng, Zhang, Liang and Lin (2019), two networks by four
methods, with calibration beside accuracy.

    python tutorials/reproduce/mnist.py --data-dir DATA --device cuda
    python tutorials/reproduce/mnist.py --data-dir DATA --preset long
    python tutorials/reproduce/mnist.py --data-dir DATA --preset cpu

Vanilla and Dropout are trained by Adam. SGHMC samples all weights under Normal priors; SGHMC-SA
differs from it in one thing, the prior of the first linear layer, SSGL with its latents learned.
The first network is trained on the images as they are, the second on augmented ones.

The default is the paper's protocol, for an accelerator. The ``long`` preset has 40 epochs, about an
hour of one core a row, and the ``cpu`` preset takes minutes. A row has a checkpoint at every draw.
``--score validation`` scores images set aside from the training images, and ``--set NAME=VALUE``
changes a constant of the preset: to choose settings without the test images.

The draws are in ``OUT/draws/``, for ``adversarial.py``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import product

from common.experiment import run_experiment
from common.options import add_options, new_parser, settle
from mnist_networks import report
from mnist_networks.protocol import DATA, METHODS, NETWORKS, PRESETS, Protocol, Row
from mnist_networks.training import FIGURES, UNFINISHED, Job, run_one


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_options(parser)
    add = parser.add_argument
    add("--preset", choices=["paper", "long", "cpu"], default="paper",
        help="the paper's protocol, or one for a CPU (default paper)")  # fmt: skip
    for option, known in (("data", DATA), ("networks", NETWORKS), ("methods", METHODS)):
        add(f"--{option}", nargs="+", choices=list(known), metavar=option.upper(),
            help=f"of {', '.join(known)} (default all)")  # fmt: skip
    add("--precision", choices=["fp32", "bf16"], help="of the networks' passes")
    add("--epochs", type=float, help="of every row, in place of the preset's")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="numbers in place of the preset's, of "
        f"{', '.join(f.name for f in fields(Protocol) if f.type in ('int', 'float'))}"
    )  # fmt: skip
    add("--score", choices=["test", "validation"], default="test",
        help="images to score; those of validation are held out of training (default test)"
    )  # fmt: skip
    args = parser.parse_args(argv)
    settle(parser, args, "mnist", seeds=(0, 1, 2))
    args.data = args.data or list(DATA[:1] if args.smoke else DATA)
    args.networks = args.networks or list(NETWORKS)
    args.methods = args.methods or list(METHODS)
    try:
        changes = _changes(args)
    except ValueError as error:
        parser.error(str(error))
    preset = PRESETS["smoke" if args.smoke else args.preset]
    args.protocols = {pair: replace(protocol, **changes) for pair, protocol in preset.items()}
    return args


def _changes(args: argparse.Namespace) -> dict[str, object]:
    """Return the options of the command line that change every protocol."""
    changes: dict[str, object] = {}
    if args.epochs is not None:
        changes |= {"epochs": args.epochs, "adam_epochs": args.epochs}
    if args.precision is not None:
        changes["precision"] = args.precision
    kinds = {f.name: {"int": int, "float": float}.get(str(f.type)) for f in fields(Protocol)}
    for text in args.set:
        name, _, value = text.partition("=")
        kind = kinds.get(name)
        if kind is None:
            numbers = ", ".join(name for name, kind in kinds.items() if kind)
            raise ValueError(f"--set {text}: expected NAME=VALUE with a NAME of {numbers}")
        changes[name] = kind(value)
    return changes


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every row is there."""
    args = parse(argv)
    job = Job(
        args.protocols,
        args.data_dir,
        args.download,
        args.device,
        args.out,
        validation=args.score == "validation",
    )
    tasks = [
        (seed, str(Row(data, network, method)))
        for network, seed, data, method in product(
            args.networks, args.seeds, args.data, args.methods
        )
    ]
    status = run_experiment(
        "mnist.py",
        argv,
        args,
        tasks=tasks,
        figures=FIGURES,
        run_one=partial(run_one, job=job),
        settings_of=job.settings_of,
        write_report=report.write,
        image="scores.png",
    )
    if status == 0:
        shutil.rmtree(args.out / UNFINISHED, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
