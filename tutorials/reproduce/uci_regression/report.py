# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finished replicates as tables (CSV, Markdown), beside the published figures, and a figure."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, mean_and_se, write_page

import pyro_aeb

from .data import TABLES
from .methods import FIGURES, LABELS, METHODS

PUBLISHED_TABLES = ("boston", "yacht", "energy", "wine", "concrete")

#: Test RMSE of the last iterate, mean and standard error over 20 splits, as the paper gives them.
PUBLISHED = {
    "sghmc": ((2.783, 0.109), (0.886, 0.046), (1.983, 0.092), (0.731, 0.015), (6.319, 0.179)),
    "a-sghmc": ((2.848, 0.126), (0.808, 0.048), (1.419, 0.067), (0.671, 0.019), (5.978, 0.166)),
    "sghmc-em": ((2.813, 0.140), (0.823, 0.053), (2.077, 0.108), (0.729, 0.018), (6.275, 0.169)),
    "a-sghmc-em": ((2.767, 0.154), (0.815, 0.052), (1.435, 0.069), (0.627, 0.008), (5.762, 0.156)),
    "sghmc-sa": ((2.779, 0.133), (0.789, 0.050), (1.948, 0.081), (0.654, 0.010), (6.029, 0.131)),
    "a-sghmc-sa": ((2.692, 0.120), (0.782, 0.052), (1.388, 0.052), (0.620, 0.008), (5.687, 0.142)),
}

#: Mean test RMSE of Monte Carlo dropout with ten times the epochs, on other splits.
DROPOUT = {"boston": 2.80, "yacht": 0.72, "energy": 1.09, "wine": 0.61, "concrete": 4.81}

NOTES = """\
Means ± standard errors over the splits. *Paper* is the published figure, of the last iterate.
*Last* is the chain's last draw; *average* is the mean of the draws' predictions after warm-up.

- *NLL*: minus the mean log density of the test targets, in the target's own unit; of the average,
  under the equal mixture of all draws. The six rows of the paper hold the noise variance at 1/2,
  whatever the noise is, so theirs says little about the sampler.
- *Coverage*: share of the test rows inside the central 90 % interval of that mixture.
- *σ, δ1, δ2*: mean after warm-up. σ is the unit of the weights' prior; in our row also the noise's
  standard deviation. δ1 is of the hidden layer's weights, δ2 of the output's.
- *Collapsed*: share of the splits in which the kernel warned that a δ had reached 0.
- *Restarts*: chains that overflowed and were started again from other weights, per split.
- *Seconds*: processor time of one fit on one thread, on a busy machine.
"""


def summarise(rows: Sequence[Row]) -> pd.DataFrame:
    """
    Mean and standard error of every figure, indexed by table and method, in the tables' order.

    :param rows: of ``replicates.csv``.
    """
    data = frame(rows, FIGURES)
    data[["table", "row"]] = data["method"].str.split("/", expand=True)
    summary = mean_and_se(data, FIGURES, by=("table", "row"))
    order = [(table, row) for table in TABLES for row in METHODS if (table, row) in summary.index]
    return summary.loc[order]


def published(table: str, row: str) -> tuple[float, float]:
    """Mean and standard error in the paper; nan where it has none."""
    if row not in PUBLISHED or table not in PUBLISHED_TABLES:
        return np.nan, np.nan
    return PUBLISHED[row][PUBLISHED_TABLES.index(table)]


def _tables(summary: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(summary.index.get_level_values(0)))


def _rows(summary: pd.DataFrame) -> list[str]:
    found = set(summary.index.get_level_values(1))
    return [row for row in METHODS if row in found]


Value = Callable[[str, str], tuple[float, float]]


def _value(summary: pd.DataFrame, figure: str) -> Value:
    """A function of table and row that looks up mean and standard error."""

    def value(table: str, row: str) -> tuple[float, float]:
        if (table, row) not in summary.index:
            return np.nan, np.nan
        line = summary.loc[(table, row)]
        return line[f"{figure}_mean"], line[f"{figure}_se"]

    return value


def _table(summary: pd.DataFrame, values: dict[str, Value], decimals: int) -> str:
    """Rows by tables, a line for each of the values."""
    tables = _tables(summary)
    lines = []
    for row in _rows(summary):
        label = LABELS[row]
        for name, value in values.items():
            cells = [cell(*value(table, row), decimals=decimals) for table in tables]
            if any(text != "–" for text in cells):
                lines.append([label, name, *cells])
                label = ""
    return markdown_table(["method", "", *(TABLES[table] for table in tables)], lines)


def rmse_table(summary: pd.DataFrame) -> str:
    """The main table."""
    values = {
        "paper": published,
        "last": _value(summary, "rmse_last"),
        "average": _value(summary, "rmse"),
    }
    return _table(summary, values, decimals=3)


def bars_table(summary: pd.DataFrame) -> str:
    """Our row against the best published figures."""
    lines = []
    for table in _tables(summary):
        if (table, "ours") not in summary.index or table not in PUBLISHED_TABLES:
            continue
        mean, error = _value(summary, "rmse")(table, "ours")
        bar, dropout = published(table, "a-sghmc-sa"), DROPOUT[table]
        lines.append(
            [
                TABLES[table],
                cell(mean, error, decimals=3),
                cell(*bar, decimals=3),
                f"{mean - bar[0]:+.3f}",
                f"{(mean - bar[0]) / error:+.1f}",
                cell(dropout, decimals=2),
                f"{(mean - dropout) / error:+.1f}",
            ]
        )
    header = ["", "ours", "A-SGHMC-SA, paper", "ours − paper", "in our SE",
              "MC dropout, 10 times the epochs", "ours − dropout, in our SE"]  # fmt: skip
    return markdown_table(header, lines)


def chains_table(summary: pd.DataFrame) -> str:
    """Return the table of the chains' latents and temperatures."""
    columns = {
        "sigma": "σ",
        "delta1": "δ1",
        "delta2": "δ2",
        "coverage": "coverage",
        "collapsed": "collapsed",
        "restarts": "restarts",
        "steps": "steps",
        "seconds": "seconds",
    }
    lines = []
    for table, row in summary.index:
        line = summary.loc[(table, row)]
        cells = [cell(line[f"{key}_mean"]) for key in columns]
        lines.append([TABLES[table], LABELS[row], str(int(line["replicates"])), *cells])
    return markdown_table(["table", "method", "splits", *columns.values()], lines)


def markdown(rows: Sequence[Row], summary: pd.DataFrame, command: str) -> str:
    """
    The tables as a page.

    :param rows: of ``replicates.csv``.
    :param summary: of :func:`summarise`.
    :param str command: the command line that made it.
    """
    packages = ("torch", "pyro-ppl", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    made_with = {row["method"]: row["settings"] for row in rows}
    tasks = [f"{table}/{row}" for table, row in summary.index]
    settings = "\n".join(f"- `{task}`: {made_with[task]}" for task in tasks)
    nll = {"last": _value(summary, "nll_last"), "average": _value(summary, "nll")}
    return f"""\
# Regression on UCI tables

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {versions}.

{NOTES}
## RMSE

{rmse_table(summary)}

## Bars

{bars_table(summary)}

## NLL

{_table(summary, nll, decimals=2)}

## Chains

{chains_table(summary)}

## Settings

{settings}
"""


def draw_errors(summary: pd.DataFrame, path: Path) -> None:
    """
    Test RMSE of every row, a panel for each table.

    :param summary: of :func:`summarise`.
    :param path: the PNG to write.
    """
    from matplotlib.figure import Figure

    tables, rows = _tables(summary), _rows(summary)
    figure = Figure(figsize=(2.1 + 2.1 * len(tables), 1.2 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    kinds: dict[str, tuple[Value, str, str, float]] = {
        "paper, last": (published, "0.6", "s", -0.22),
        "last": (_value(summary, "rmse_last"), "C1", "o", 0.0),
        "average": (_value(summary, "rmse"), "C0", "o", 0.22),
    }
    for axes, table in zip(panels, tables, strict=True):
        for label, (value, color, marker, shift) in kinds.items():
            means, errors = np.array([value(table, row) for row in rows]).T
            heights = np.arange(len(rows)) + shift
            axes.errorbar(means, heights, xerr=errors, fmt=marker, color=color, markersize=4,
                          elinewidth=1.0, label=label)  # fmt: skip
        bar = published(table, "a-sghmc-sa")[0]
        if np.isfinite(bar):
            axes.axvline(bar, color="0.6", linestyle=":", linewidth=1.0)
        axes.set_title(TABLES[table])
    panels[0].set_yticks(range(len(rows)), [LABELS[row] for row in rows])
    panels[0].invert_yaxis()
    figure.supxlabel("test RMSE, mean ± standard error (dotted: the paper's A-SGHMC-SA)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


def write_report(rows: Sequence[Row], out: Path, command: str) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``rmse.png``.

    :returns: the Markdown table of test errors, to print.
    """
    summary = summarise(rows)
    summary.to_csv(out / "table.csv", float_format="%.6g")
    write_page(out / "table.md", markdown(rows, summary, command))
    draw_errors(summary, out / "rmse.png")
    return rmse_table(summary)
