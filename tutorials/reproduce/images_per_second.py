# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How many images a second the image experiments train on, on one thread of a CPU: network 1 on MNIST
and a ResNet20 on CIFAR-10, in both precisions and memory formats, with a compiled step, and with
and without the memory that glibc returns to the system.

    python tutorials/reproduce/images_per_second.py --data-dir DATA --out OUT

Every line is a process of its own and some steps of the kernel, augmentation included. Time is
processor time; the median of eight steps counts, after three that do not. A line is in
``OUT/images_per_second.csv`` as soon as it is measured, and is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyro_aeb as aeb

COLUMNS = ("network", "row", "precision", "format", "step", "memory", "batch", "images_per_second")
LINES = [
    ("net1", "sghmc", "fp32", "channels-last", "as-written", "kept", 100),
    ("net1", "sghmc", "fp32", "channels-first", "as-written", "kept", 100),
    ("net1", "sghmc", "fp32", "channels-last", "as-written", "returned", 100),
    ("resnet20", "sghmc", "fp32", "channels-last", "as-written", "kept", 128),
    ("resnet20", "sghmc", "fp32", "channels-first", "as-written", "kept", 128),
    ("resnet20", "sghmc", "fp32", "channels-last", "as-written", "returned", 128),
    ("resnet20", "a-sghmc-sa", "fp32", "channels-last", "as-written", "kept", 128),
    ("net1", "sghmc", "fp32", "channels-last", "as-written", "kept", 500),
    ("net1", "sghmc", "fp32", "channels-last", "compiled", "kept", 100),
    ("resnet20", "sghmc", "fp32", "channels-last", "compiled", "kept", 128),
    ("net1", "sghmc", "bf16", "channels-last", "as-written", "kept", 100),
    ("resnet20", "sghmc", "bf16", "channels-last", "as-written", "kept", 128),
]
WARMUP, STEPS = 3, 8


def measure(line: Sequence[str], data_dir: Path | None) -> float:
    """
    Images a second of one line, in this process.

    :param line: of :data:`LINES`.
    :param data_dir: of the data.
    """
    import torch
    from vision import networks
    from vision.data import batches, load

    network, row, precision, layout, step, memory, size = line
    torch.set_num_threads(1)
    if memory == "kept":
        keep_memory()
    if layout == "channels-first":
        networks.channels_last = lambda x: x  # type: ignore[assignment]
        torch.channels_last = torch.contiguous_format  # of the models' own conversion
    train, _ = load("mnist" if network == "net1" else "cifar10", data_dir)
    kernel, augment = _kernel(network, row, precision, len(train.labels), step == "compiled")
    times: list[float] = []
    mcmc = aeb.MCMC(
        kernel,
        num_samples=STEPS,
        warmup_steps=WARMUP,
        hook_fn=lambda *_: times.append(time.process_time()),
        disable_progbar=True,
    )
    mcmc.run(batches(train, int(size), augment, train=True))
    steps = [b - a for a, b in zip(times[WARMUP - 1 :], times[WARMUP:], strict=False)]
    return int(size) / median(steps)


def keep_memory() -> None:
    """
    Let the process keep the memory that it frees, which glibc otherwise returns to the system in
    large pieces, to be cleared page by page when the next step asks for it again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, -1)  # M_TRIM_THRESHOLD


def _kernel(network: str, row: str, precision: str, data: int, compiled: bool) -> Any:
    """Return a kernel that makes a draw at every step, and the augmentation."""
    from resnet_compression.methods import Classifier, dense_network, sparse_network, sparse_sites
    from resnet_compression.training import augmentation
    from vision.augment import PLAIN
    from vision.networks import Net1, ResNet20

    module = Net1() if network == "net1" else ResNet20()
    sparse = row == "a-sghmc-sa"
    net = sparse_network(module, 90) if sparse else dense_network(module)
    pruning = aeb.MagnitudePruning(0.5, sites=sparse_sites(module)) if sparse else None
    kernel = aeb.AEBKernel(
        Classifier(net, data, precision),
        aeb.SGHMC(1e-9, friction=0.1),
        adaptation=aeb.StochasticApproximation(aeb.Polynomial(0.02, 1000.0, 0.75))
        if sparse
        else None,
        inverse_temperature=1e4,
        pruning=pruning,
        steps_per_draw=1,
        save=["fc2.bias" if network == "net1" else "fc.bias"],
        seed=0,
        compile=compiled,
    )
    return kernel, PLAIN if network == "net1" else augmentation(False)


def main(argv: Sequence[str]) -> int:
    """Measures what is not in the file yet; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder of the data; with --line images are made up without")
    add("--out", type=Path, default=Path("images_output"), help="folder for the table")
    add("--line", nargs=len(COLUMNS) - 1, help="measure this line alone, and print it")
    args = parser.parse_args(argv)
    if args.line:
        print(f"{measure(args.line, args.data_dir):.1f}")
        return 0
    if args.data_dir is None:
        parser.error("--data-dir is missing: say where the data are")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "images_per_second.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    with path.open(newline="") as file:
        measured = {tuple(line[:-1]) for line in csv.reader(file)}
    for line in LINES:
        words = tuple(map(str, line))
        if words not in measured:
            command = [sys.executable, __file__, "--data-dir", str(args.data_dir), "--line", *words]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            with path.open("a", newline="") as file:
                csv.writer(file).writerow((*words, found.split()[-1]))
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
