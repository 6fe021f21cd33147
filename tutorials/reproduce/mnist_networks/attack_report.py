# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finished rows of ``adversarial.py`` as tables (CSV, Markdown) and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, mean_and_se, write_page
from matplotlib.figure import Figure

from .attack import FIGURES, STRENGTHS, figure_of
from .protocol import DATA, METHODS, NETWORKS
from .report import TITLES

SHOWN = (0.0, 0.1, 0.2, 0.3)
PAPER = {
    ("mnist", 0.1): (93, 95, 97, 98),
    ("mnist", 0.2): (65, 75, 85, 86),
    ("mnist", 0.3): (28, 43, 55, 59),
    ("fashion", 0.1): (40, 42, 58, 58),
    ("fashion", 0.2): (22, 25, 37, 38),
}
"""Accuracy in percent of the methods in the table's order, read off the paper's figure."""

NOTES = """\
Accuracy in percent on attacked test images, means ± standard errors over the seeds. SGHMC and
SGHMC-SA are attacked and scored as the average of their draws, Vanilla and Dropout as their last
network, without dropout. *Paper*: read off its figure, to a point or two.
"""


def write(rows: Sequence[Row], out: Path, command: str) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``curves.png``.

    :param rows: of ``replicates.csv``.
    :param out: the folder.
    :param str command: that made them, for the table.
    :returns: the Markdown text.
    """
    table = frame(rows, FIGURES)
    summary = mean_and_se(table, FIGURES)
    summary.to_csv(out / "table.csv", float_format="%.6g")
    parts = [f"```bash\n{command}\n```", NOTES]
    for network, data in product(NETWORKS, DATA):
        lines = _lines(table, summary, data, network)
        if lines:
            header = ["method", "seeds"]
            for strength in SHOWN:
                header.append(f"ζ = {strength:g}")
                if (data, strength) in PAPER:
                    header.append("paper")
            parts += [f"## {TITLES[data, network]}", markdown_table(header, lines)]
    settings = dict.fromkeys(row["settings"] for row in rows)
    parts += ["## Settings", *(f"- {text}" for text in settings)]
    text = "\n\n".join(parts) + "\n"
    write_page(out / "table.md", text)
    _draw(summary).savefig(out / "curves.png", dpi=110)
    return text


def _lines(table: pd.DataFrame, summary: pd.DataFrame, data: str, network: str) -> list[list[str]]:
    """The methods' rows, and below them SGHMC-SA minus each, paired by seed."""
    lines = []
    for place, (kind, label) in enumerate(METHODS.items()):
        name = f"{data} {network} {kind}"
        if name in summary.index:
            row = summary.loc[name]
            line = [label, f"{int(row.replicates)}"]
            for strength in SHOWN:
                figure = figure_of(strength)
                line.append(cell(row[f"{figure}_mean"], row[f"{figure}_se"], 1))
                if (data, strength) in PAPER:
                    line.append(str(PAPER[data, strength][place]))
            lines.append(line)
    seeds = table.set_index("seed")
    ours = seeds[seeds.method == f"{data} {network} sghmc-sa"]
    for kind in reversed(list(METHODS)[:-1]):
        other = seeds[seeds.method == f"{data} {network} {kind}"]
        pairs = (ours[list(FIGURES)] - other[list(FIGURES)]).dropna()
        if len(pairs):
            line = [f"SGHMC-SA − {METHODS[kind]}", f"{len(pairs)}"]
            for strength in SHOWN:
                values = pairs[figure_of(strength)]
                line.append(cell(values.mean(), values.sem(), 1))
                if (data, strength) in PAPER:
                    figures = dict(zip(METHODS, PAPER[data, strength], strict=True))
                    line.append(str(figures["sghmc-sa"] - figures[kind]))
            lines.append(line)
    return lines


def _draw(summary: pd.DataFrame) -> Figure:
    """A panel for each data set and network; bands of one standard error."""
    pairs = [
        (data, network)
        for network, data in product(NETWORKS, DATA)
        if any(f"{data} {network} {kind}" in summary.index for kind in METHODS)
    ]
    figure = Figure(figsize=(1 + 4.4 * len(pairs), 4.2), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (data, network) in zip(panels, pairs, strict=True):
        for place, (kind, label) in enumerate(METHODS.items()):
            name = f"{data} {network} {kind}"
            if name in summary.index:
                means = summary.loc[name, [f"{f}_mean" for f in FIGURES]].to_numpy(float)
                errors = summary.loc[name, [f"{f}_se" for f in FIGURES]].to_numpy(float)
                axes.plot(STRENGTHS, means, "o-", markersize=3, color=f"C{place}", label=label)
                axes.fill_between(
                    STRENGTHS, means - errors, means + errors, color=f"C{place}", alpha=0.2
                )
        axes.set(title=TITLES[data, network], xlabel="ζ", ylabel="accuracy, %", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
