# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
ResNet20 on CIFAR-10, compressed to 10 % of its weights and less: the experiment of Deng, Zhang,
Liang and Lin (2019), with gradual magnitude pruning beside it.

    python tutorials/reproduce/resnet_cifar.py --data-dir DATA --device cuda
    python tutorials/reproduce/resnet_cifar.py --data-dir DATA --preset long
    python tutorials/reproduce/resnet_cifar.py --data-dir DATA --preset cpu

A dense network is trained first, by SGHMC under Normal priors, and stored in ``OUT/dense.pt``. From
it every row starts: A-SGHMC, A-SGHMC-EM, SGHMC-SA, A-SGHMC-SA, and gradient descent with momentum,
all of them with the same batches, pruning schedule, step size schedule and penalty on the dense
weights. ``--stage dense`` stops after the first, ``--stage sparse`` takes a dense network as given.

The default is the paper's protocol, 1000 epochs for the dense network and 1000 for each row, for an
accelerator. The ``long`` preset has 60 and 20, the ``cpu`` preset 6 and 1, with a factor on the
step size for each kind of prior. There is a checkpoint at every draw, in ``OUT/unfinished/``, and
after every epoch a line of scores on held-out images, in ``OUT/curves/``. The ``gpu`` preset has
150 and 50 with batches of 1000, for ten minutes of an accelerator; ``pack_cifar.py`` packs the
data for one.

``--data-dir`` holds torchvision's CIFAR-10, or folders ``{train,test}/CLASS/`` of image files,
which are decoded once, into ``decoded`` beside them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.experiment import run_experiment
from common.harness import Row
from common.options import add_options, new_parser, settle
from resnet_compression import dense, report
from resnet_compression.methods import METHODS, task_name
from resnet_compression.protocol import PRESETS, WIDTHS
from resnet_compression.sparse import FIGURES, run_one, settings_of
from resnet_compression.training import UNFINISHED, Run


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_options(parser)
    add = parser.add_argument
    add("--preset", choices=["full", "long", "gpu", "cpu"], default="full",
        help="the paper's protocol, or one for a CPU (default full)")  # fmt: skip
    add("--stage", choices=["all", "dense", "sparse"], default="all",
        help="both stages, the dense network alone, or the rows alone (default all)")  # fmt: skip
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help=f"rows to run, of {', '.join(METHODS)} (default all)")  # fmt: skip
    add("--sparsity", type=int, nargs="+", choices=list(WIDTHS), metavar="PERCENT",
        help=f"target sparsities, of {', '.join(map(str, WIDTHS))} (default all; 90 with "
        "--preset cpu and --smoke)")  # fmt: skip
    add("--epochs", type=int, help="of the sparse stage, in place of the preset's")
    add("--step-scale", type=float,
        help="factor on the sparse stage's step size, in place of the preset's")  # fmt: skip
    for name in ("v0", "v1", "omega"):
        add(f"--{name}-scale", type=float, help=f"factor on {name}, of a trial")
    add("--penalties", choices=["averaged", "current"], help="of a trial (default averaged)")
    add("--sigma-from", choices=["all", "slab"], help="of a trial (default all)")
    add("--precision", choices=["fp32", "bf16"], help="of the network's passes")
    add("--score", choices=["test", "validation"], default="test",
        help="images to score; validation, to choose a --step-scale, are held out of training "
        "(default test)")  # fmt: skip
    args = parser.parse_args(argv)
    settle(parser, args, "resnet_cifar", seeds=(0, 1, 2))
    args.protocol = PRESETS["smoke" if args.smoke else args.preset]
    given = {
        "sparse_epochs": args.epochs,
        "normal_scale": args.step_scale,
        "sa_scale": args.step_scale,
        "em_scale": args.step_scale,
        "precision": args.precision,
    }
    changes = {
        "v0": args.v0_scale,
        "v1": args.v1_scale,
        "omega": args.omega_scale,
        "penalties": args.penalties,
        "sigma_from": args.sigma_from,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    given["changes"] = replace(args.protocol.changes, **changes)
    given = {name: value for name, value in given.items() if value is not None}
    args.protocol = replace(args.protocol, **given)
    if args.score == "validation" and not args.protocol.validation:
        parser.error(f"--score validation: the {args.preset} preset holds no images out")
    if args.sparsity is None:
        args.sparsity = list(WIDTHS) if args.preset == "full" and not args.smoke else [90]
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every row is there."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args.protocol, args.data_dir, args.download, args.out, args.device, args.score)
    if args.stage == "sparse" and not dense.checkpoint(run).exists():
        print(f"there is no {dense.checkpoint(run)}; run --stage dense first", file=sys.stderr)
        return 2
    _, dense_figures = dense.dense_network_of(run)
    print(f"dense network: accuracy {100 * dense_figures['accuracy_last']:.2f} %")
    if args.stage == "dense":
        return 0
    tasks = [
        (seed, task_name(method, percent))
        for percent in args.sparsity
        for seed in args.seeds
        for method in args.methods
    ]

    def write_report(rows: list[Row], out: Path, command: str) -> str:
        return report.write(rows, dense_figures, run, command)

    status = run_experiment(
        "resnet_cifar.py",
        argv,
        args,
        tasks=tasks,
        figures=FIGURES,
        run_one=partial(run_one, run=run),
        settings_of=partial(settings_of, protocol=args.protocol, score=args.score),
        write_report=write_report,
        image="drops.png",
    )
    if status == 0:
        shutil.rmtree(args.out / UNFINISHED, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
