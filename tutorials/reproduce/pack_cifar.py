# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Packs CIFAR-10 into JPEG sheets of some 40 MB, to be carried to a machine with an accelerator.

    python tutorials/reproduce/pack_cifar.py --data-dir DATA --out PACKED
    python tutorials/reproduce/resnet_cifar.py --data-dir PACKED --preset gpu --device cuda

The second command, on that machine, takes some ten minutes. JPEG loses detail: accuracies are not
those of CIFAR-10 as it is, and are to be compared with one another alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vision.data import load
from vision.sheets import FOLDER, pack


def main(argv: Sequence[str]) -> int:
    """Packs; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder of torchvision's CIFAR-10")
    add("--out", type=Path, required=True, help="folder for the sheets")
    add("--quality", type=int, default=95, help="of JPEG (default 95)")
    args = parser.parse_args(argv)
    train, test = load("cifar10", args.data_dir)
    size = pack({"train": train, "test": test}, args.out / FOLDER, args.quality)
    print(f"{size / 2**20:.1f} MiB in {args.out / FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
