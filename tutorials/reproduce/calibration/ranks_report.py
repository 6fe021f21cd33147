# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Ranks as a table (CSV, Markdown) and as histograms."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from common.harness import Row
from common.tables import frame, markdown_table, write_page
from matplotlib.figure import Figure
from scipy import stats

import pyro_aeb

from .ranks import FIGURES, LEVEL, SETTINGS, P, Protocol, design, power, settings_of, variance_ratio

NOTES = """\
Ranks of the true weight among kept draws, counted over data sets; for each weight a chi-square test
that all ranks are equally likely. *p* is four times the smallest of the four weights' p-values;
below {level} the row is rejected. *Autocorrelation* is that of consecutive kept draws, the largest
of the weights. *Variance* is by how much the step inflates the variance in the direction where it
does so most, in closed form for a Normal posterior, and *power* the probability that the test of
one weight rejects for that alone, where {single} is the probability without it.
"""


def write_report(rows: Sequence[Row], folder: Path, command: str, protocol: Protocol) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``ranks.png``.

    :param rows: of ``replicates.csv``.
    :param folder: where they go.
    :param str command: the command line that made them.
    :param Protocol protocol: sizes.
    :returns: the table, to print.
    """
    table = frame(rows, FIGURES).set_index("method")
    table = table.loc[[name for name in SETTINGS if name in table.index]]
    table.to_csv(folder / "table.csv")
    text = _table(table, protocol)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl"))
    settings = "\n".join(f"- `{name}`: {settings_of(name, protocol)}" for name in table.index)
    page = f"""\
# Simulation-based calibration

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {packages}.

{NOTES.format(level=LEVEL, single=LEVEL / P)}
{protocol.sets} data sets, {protocol.draws} draws of each.

## Ranks

{text}

## Settings

{settings}
"""
    write_page(folder / "table.md", page)
    draw_ranks(table, protocol, folder / "ranks.png")
    return text


def _table(table: pd.DataFrame, protocol: Protocol) -> str:
    curvature = design(np.random.default_rng(int(table.seed.iloc[0])))[1]
    lines = []
    for name, row in table.iterrows():
        setting = SETTINGS[str(name)]
        singles = [float(row[f"p_{j}"]) for j in range(1, P + 1)]
        p_value = min(1.0, P * min(singles))
        ratios = [variance_ratio(setting, h, curvature[-1]) for h in curvature]
        ratio = max(ratios, key=lambda r: abs(np.log(r)))
        lines.append([
            setting.label,
            *(f"{p:.2g}" for p in singles),
            f"{p_value:.2g}",
            "rejected" if p_value < LEVEL else "uniform",
            f"{row['autocorrelation']:.3f}",
            f"{100 * (ratio - 1):+.1f} %",
            f"{power(ratio, protocol):.4f}",
        ])  # fmt: skip
    header = ["row", *(f"β{j}" for j in range(1, P + 1)), "p", "ranks are"]
    return markdown_table([*header, "autocorrelation", "variance", "power"], lines)


def draw_ranks(table: pd.DataFrame, protocol: Protocol, path: Path) -> None:
    """
    A histogram a row: one line for each weight, and the band that holds 99 % of counts that are
    uniform.

    :param table: of the rows' figures.
    :param path: the PNG to write.
    """
    figure = Figure(figsize=(11, 3.0 * -(-len(table) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(table) // 3), min(3, len(table)), squeeze=False).ravel()
    cells = protocol.draws + 1
    low, high = stats.binom.ppf([0.005, 0.995], protocol.sets, 1 / cells)
    for axis, (name, row) in zip(panels, table.iterrows(), strict=False):
        axis.axhspan(low, high, color="#dddddd")
        for j in range(1, P + 1):
            counts = [row[f"count_{j}_{r}"] for r in range(cells)]
            axis.stairs(counts, np.arange(cells + 1) - 0.5, baseline=None, lw=1.2, label=f"β{j}")
        axis.set_title(SETTINGS[str(name)].label, fontsize=10)
        axis.set(xlabel="rank", ylim=(0, None))
    panels[0].set_ylabel("data sets")
    panels[0].legend(ncols=2, fontsize=8, loc="lower center")
    for axis in panels[len(table) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)
