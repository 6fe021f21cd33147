# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The command line options that every reproduction script has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .experiment import KEPT


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """
    A parser whose ``--help`` is a script's docstring, and says that finished rows are kept. Options
    are not abbreviated: a command that is put into a table has them as they are.

    :param description: the docstring.
    """
    return argparse.ArgumentParser(
        description=description,
        epilog=KEPT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """
    Adds ``--data-dir``, ``--download``, ``--smoke``, ``--seeds``, ``--device``, ``--jobs`` and
    ``--out``. :func:`settle` gives those that were left out their values.
    """
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder of the data")
    add("--download", action="store_true",
        help="allow the data to be downloaded into --data-dir")  # fmt: skip
    add("--smoke", action="store_true",
        help="tiny and meaningless, to see that everything runs; on made-up data without "
        "--data-dir")  # fmt: skip
    add("--seeds", type=int, nargs="+", help="one replicate for each")
    add("--device", default="cpu", help="torch device of the runs (default cpu)")
    add("--jobs", type=int, default=1, help="tasks to run at the same time (default 1)")
    add("--out", type=Path, help="folder for the results")


def settle(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    name: str,
    seeds: Sequence[int],
    smoke_seeds: Sequence[int] = (0,),
) -> None:
    """
    Completes what :func:`add_options` parsed: the seeds, and the folder for the results,
    ``NAME_output`` or ``NAME_smoke``. Ends the program if a run that is no smoke run has no data.

    :param parser: for the error message.
    :param args: parsed; changed in place.
    :param str name: of the script.
    :param seeds: the default ones.
    :param smoke_seeds: those of a smoke run.
    """
    if args.data_dir is None and not args.smoke:
        parser.error("--data-dir is missing: say where the data are, or use --smoke")
    if args.seeds is None:
        args.seeds = list(smoke_seeds if args.smoke else seeds)
    if args.out is None:
        args.out = Path(f"{name}_smoke" if args.smoke else f"{name}_output")
