# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finished rows of ``mnist.py`` as tables (CSV, Markdown) and as a figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common.harness import Row
from common.tables import cell, frame, markdown_table, mean_and_se, write_page
from matplotlib.figure import Figure

import pyro_aeb

from .protocol import DATA, METHODS, NETWORKS
from .training import FIGURES

TITLES = {
    ("mnist", "net1"): "MNIST, network 1",
    ("mnist", "net2"): "MNIST, network 2, augmented",
    ("fashion", "net1"): "Fashion-MNIST, network 1",
    ("fashion", "net2"): "Fashion-MNIST, network 2, augmented",
}
PAPER = {
    ("mnist", "net1"): (99.31, 99.38, 99.47, 99.59),
    ("mnist", "net2"): (99.54, 99.56, 99.63, 99.75),
    ("fashion", "net1"): (92.73, 92.81, 92.88, 93.01),
    ("fashion", "net2"): (93.14, 93.35, 94.29, 94.38),
}
"""Accuracy in percent of the methods in the table's order: single seeds, the posterior average."""

COLUMNS = {
    "accuracy_average": ("accuracy, average", 2),
    "accuracy_last": ("accuracy, last", 2),
    "nll_average": ("NLL, average", 4),
    "nll_last": ("NLL, last", 4),
    "ece_average": ("ECE, average", 2),
    "ece_last": ("ECE, last", 2),
    "brier_average": ("Brier, average", 4),
    "seconds": ("processor seconds", 0),
}
DIFFERENCES = {"accuracy": ("accuracy", 2), "nll": ("NLL", 4)}
OTHERS = (
    ("sghmc", "average", "SGHMC, average"),
    ("dropout", "last", "Dropout, last"),
    ("vanilla", "last", "Vanilla, last"),
    ("dropout", "average", "Dropout, average of iterates"),
    ("vanilla", "average", "Vanilla, average of iterates"),
)
NOTES = """\
Means ± standard errors over the seeds; accuracy and ECE in percent, NLL in nats. *Last* scores the
last draw or iterate alone, *average* the average of the predicted probabilities over the draws. The
paper scores Vanilla and Dropout by one network; for them *average* is over Adam's iterates at the
places of the draws. Their networks predict without dropout. ECE has 15 bins. *Processor seconds*
are of training on one thread, scoring excluded. *Paper* is the published accuracy: posterior
average for the samplers, one seed.
"""


def load(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows of ``replicates.csv`` with columns ``data``, ``network``, ``kind`` of method."""
    table = frame(rows, FIGURES)
    names = table.method.str.split(" ", expand=True)
    return table.assign(data=names[0], network=names[1], kind=names[2])


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """
    SGHMC-SA's average minus every other prediction, in pairs of the same seed.

    :param table: of :func:`load`, for one data set and network.
    :returns: one row for each of :data:`OTHERS` that is there: ``label``, ``seeds``, and mean and
        standard error of each of :data:`DIFFERENCES`.
    """
    seeds = table.set_index("seed")
    ours = seeds[seeds.kind == "sghmc-sa"]
    lines = []
    for kind, when, label in OTHERS:
        other = seeds[seeds.kind == kind]
        line: dict[str, Any] = {"label": label}
        for score in DIFFERENCES:
            pairs = (ours[f"{score}_average"] - other[f"{score}_{when}"]).dropna()
            line |= {"seeds": len(pairs), f"{score}_mean": pairs.mean(), f"{score}_se": pairs.sem()}
        lines.append(line)
    found = pd.DataFrame(lines)
    return found[found.seeds > 0]


def write(rows: Sequence[Row], out: Path, command: str) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``scores.png``.

    :param rows: of ``replicates.csv``.
    :param out: the folder.
    :param str command: that made them, for the table.
    :returns: the Markdown text.
    """
    table = load(rows)
    summary = mean_and_se(table, FIGURES)
    summary.to_csv(out / "table.csv", float_format="%.6g")
    parts = [f"```bash\n{command}\n```", NOTES]
    for pair in product(NETWORKS, DATA):
        chosen = table[(table.data == pair[1]) & (table.network == pair[0])]
        if len(chosen):
            parts += _section(chosen, summary, (pair[1], pair[0]))
    settings = dict(zip(table.method, table.settings, strict=True))
    parts += ["## Settings", *(f"- {name}: {text}" for name, text in settings.items())]
    parts.append(
        f"pyro_aeb {pyro_aeb.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}."
    )
    text = "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"
    write_page(out / "table.md", text)
    _draw(table).savefig(out / "scores.png", dpi=110)
    return text


def _section(chosen: pd.DataFrame, summary: pd.DataFrame, pair: tuple[str, str]) -> list[str]:
    lines = []
    for kind, paper in zip(METHODS, PAPER[pair], strict=True):
        name = " ".join((*pair, kind))
        if name in summary.index:
            row = summary.loc[name]
            cells = [
                cell(row[f"{figure}_mean"], row[f"{figure}_se"], decimals)
                for figure, (_, decimals) in COLUMNS.items()
            ]
            lines.append([METHODS[kind], f"{int(row.replicates)}", *cells, f"{paper:.2f}"])
    header = ["method", "seeds", *(label for label, _ in COLUMNS.values()), "paper"]
    parts = [f"## {TITLES[pair]}", markdown_table(header, lines)]
    compared = differences(chosen)
    if len(compared):
        parts.append("SGHMC-SA's average minus another prediction, paired by seed:")
        header = ["minus", "seeds", *(label for label, _ in DIFFERENCES.values())]
        lines = [
            [line.label, str(line.seeds)]
            + [
                cell(line[f"{score}_mean"], line[f"{score}_se"], decimals)
                for score, (_, decimals) in DIFFERENCES.items()
            ]
            for _, line in compared.iterrows()
        ]
        parts.append(markdown_table(header, lines))
    return parts


def _draw(table: pd.DataFrame) -> Figure:
    """A column for each data set and network; accuracy above, NLL below; a dot for each seed."""
    pairs = [
        (data, network)
        for network, data in product(NETWORKS, DATA)
        if ((table.data == data) & (table.network == network)).any()
    ]
    figure = Figure(figsize=(1 + 3.6 * len(pairs), 6.0), layout="constrained")
    panels = figure.subplots(2, len(pairs), squeeze=False)
    for column, pair in enumerate(pairs):
        chosen = table[(table.data == pair[0]) & (table.network == pair[1])]
        for axes, (score, (label, _)) in zip(panels[:, column], DIFFERENCES.items(), strict=True):
            for place, kind in enumerate(METHODS):
                rows = chosen[chosen.kind == kind]
                spread = 0.05 * (np.arange(len(rows)) - (len(rows) - 1) / 2)
                for shift, when, style in ((-0.17, "last", "none"), (0.17, "average", None)):
                    axes.plot(
                        place + shift + spread,
                        rows[f"{score}_{when}"],
                        "o",
                        color=f"C{place}",
                        markerfacecolor=style,
                        markersize=6,
                    )
            names = [name.replace("SGHMC-SA", "SGHMC\n-SA") for name in METHODS.values()]
            axes.set(xticks=range(len(METHODS)), xticklabels=names, xlim=(-0.5, 3.5))
            axes.grid(axis="y", alpha=0.3)
            if column == 0:
                axes.set_ylabel("accuracy, %" if score == "accuracy" else label)
        panels[0, column].set_title(TITLES[pair].replace(", network", "\nnetwork"))
    figure.supxlabel("hollow: last draw or iterate; filled: average; one dot a seed", fontsize=9)
    return figure
