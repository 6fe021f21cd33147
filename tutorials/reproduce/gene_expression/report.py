# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The table of all methods."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from common.tables import cell, frame, markdown_table

import pyro_aeb as aeb

from .data import SETS
from .fits import FIGURES, METHODS
from .selections import Selections, overlap


def report(rows: Sequence[dict[str, str]], selections: Selections, command: str) -> str:
    """A table: means, and paired differences from ridge on the same folds."""
    table = frame(rows, FIGURES)
    table[["data", "method"]] = table["method"].str.split("; ", expand=True).to_numpy()
    lines = []
    for data in SETS:
        of_data = table[table["data"] == data]
        losses = of_data.pivot(index="seed", columns="method", values="loss")
        for method in (m for m in METHODS if m in losses):
            own = of_data[of_data["method"] == method]
            difference = "reference" if method == "ridge" else "–"
            if method != "ridge" and "ridge" in losses:
                less = (losses[method] - losses["ridge"]).dropna()
                difference = cell(less.mean(), less.sem(), 3)
            loss = cell(own["loss"].mean(), own["loss"].sem(), 3)
            others = [cell(own[name].mean()) for name in FIGURES[1:]]
            others.insert(3, cell(overlap(selections, f"{data}; {method}")))
            lines.append([f"{data}, {method}", str(len(own)), loss, difference, *others])
    header = ["", "folds", "loss", "less ridge, paired", "errors", "in 90 % intervals", "genes"]
    header += ["overlap", "halves apart", "v0", "σ", "seconds"]
    return (
        f"# Genes\n\n    {command}\n\npyro_aeb {aeb.__version__}, torch {version('torch')}, "
        f"scikit-learn {version('scikit-learn')}. The loss is the squared error of riboflavin, the "
        "log loss of the others. Means ± standard errors over folds, which share rows; seconds of "
        f"one core.\n\n{markdown_table(header, lines)}\n"
    )
