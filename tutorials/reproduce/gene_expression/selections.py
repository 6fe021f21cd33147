# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The genes that every fit selected, in ``selected.csv``, and how much those of two folds overlap.

Of a fit that was made twice, the last line counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np

from .data import FOLDS

FILE = "selected.csv"
COLUMNS = ("seed", "method", "genes")
Selections = dict[tuple[int, str], frozenset[str]]


def begin(out: Path) -> None:
    """Write the head of the file, before any fit."""
    if not (out / FILE).exists():
        (out / FILE).write_text(",".join(COLUMNS) + "\n", encoding="utf-8")


def add_selection(out: Path, seed: int, method: str, genes: Iterable[int]) -> None:
    """Append a line, in one piece, as several processes may do so."""
    line = f"{seed},{method},{';'.join(str(gene) for gene in genes)}\n"
    with (out / FILE).open("ab", buffering=0) as file:
        file.write(line.encode())


def read_selections(out: Path) -> Selections:
    """All lines; genes are positions in the file of the data."""
    with (out / FILE).open(newline="", encoding="utf-8") as file:
        return {
            (int(row["seed"]), row["method"]): frozenset(filter(None, row["genes"].split(";")))
            for row in csv.DictReader(file)
        }


def overlap(selections: Selections, method: str) -> float:
    """
    Mean share of the genes of two folds that both select, over pairs of folds of one shuffle that
    do not both select nothing; nan if there is none.
    """
    shares = []
    for (a, first), (b, second) in combinations(sorted(selections), 2):
        both = selections[a, first], selections[b, second]
        if first == second == method and a // FOLDS == b // FOLDS and any(both):
            shares.append(len(both[0] & both[1]) / len(both[0] | both[1]))
    return float(np.mean(shares)) if shares else float("nan")
