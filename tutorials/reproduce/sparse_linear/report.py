# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finished replicates as tables (CSV, Markdown) and as a figure."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, mean_and_se, write_page

import pyro_aeb

from .methods import ALL, FIGURES, METHODS, Protocol, settings_of

#: The row that the paired differences are taken against.
REFERENCE = "mcp"

ERRORS = {
    "mse": "test MSE",
    "difference": f"MSE − {METHODS[REFERENCE].label}, paired",
    "mse_last": "test MSE, last draw",
    "mae": "test MAE",
    "seconds": "seconds",
}
SUPPORT = {
    "precision_12": "precision, β1 β2",
    "recall_12": "recall, β1 β2",
    "precision_123": "precision, β1 β2 β3",
    "recall_123": "recall, β1 β2 β3",
    "selected": "features kept",
}
UNCERTAINTY = {
    "coverage_beta1": "coverage β1",
    "coverage_beta2": "coverage β2",
    "coverage_beta3": "coverage β3",
    "coverage_zeros": "coverage, zeros",
    "interval_length": "interval length, β1–β3",
    "ess": "smallest ESS, β1–β3",
    "rhat": "largest R-hat, β1–β3",
    "sigma": "σ",
    "delta": "δ",
    "collapsed": "δ collapsed",
}
NOTES = """\
Means ± standard errors over the replicates. Every method sees the same data for a replicate; its
estimate is scored on test data that nothing else uses (noise floor of the MSE: 3.0). No method fits
an intercept.

- *Paired*: mean over the replicates that both rows have of the difference in test MSE.
- *Last draw*: the chain's last draw in place of the posterior mean.
- *Support*: an SSGL prior keeps a feature whose averaged probability of the wide component exceeds
  1/2; lasso, relaxed lasso and MCP keep what is not zero; all others keep a feature whose 90 %
  interval excludes zero. For β1 β2, keeping β3 counts neither way. Keeping nothing has precision 0.
- *Coverage*: how often the central 90 % interval of the draws (of the exact posterior; of Student's
  t) holds the truth. At an inverse temperature above 1 the draws are narrower than the posterior,
  and their intervals are too short. What the oracle rows leave out is exactly zero.
- *Seconds*: processor time of one fit on one thread, compilation by numba excluded.
- *σ, δ*: mean over the chain of the point estimates that the stochastic approximation moves; *δ
  collapsed*: share of the replicates in which the kernel warned that δ had reached 0 or 1.
"""


def summarise(rows: list[Row]) -> pd.DataFrame:
    """
    Mean and standard error of every figure, one row for each method, in the table's order.

    :param rows: of ``replicates.csv``.
    """
    table = frame(rows, FIGURES)
    reference = table[table.method == REFERENCE].set_index("seed").mse
    table["difference"] = table.mse - table.seed.map(reference)
    table.loc[table.method == REFERENCE, "difference"] = np.nan
    summary = mean_and_se(table, [*FIGURES, "difference"])
    known = [name for name in ALL if name in summary.index]
    return summary.loc[known]


def _markdown_table(summary: pd.DataFrame, columns: dict[str, str]) -> str:
    lines = []
    for name in summary.index:
        row = summary.loc[name]
        cells = [cell(row[f"{key}_mean"], row[f"{key}_se"]) for key in columns]
        if any(text != "–" for text in cells):
            lines.append([ALL[name].label, str(int(row["replicates"])), *cells])
    return markdown_table(["method", "replicates", *columns.values()], lines)


def markdown(summary: pd.DataFrame, command: str, protocol: Protocol) -> str:
    """
    The tables as a page.

    :param summary: of :func:`summarise`.
    :param str command: the command line that made it.
    :param Protocol protocol: sizes and lengths.
    """
    packages = ("torch", "pyro-ppl", "scikit-learn", "skglm")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    settings = "\n".join(f"- `{name}`: {settings_of(name, protocol)}" for name in summary.index)
    return f"""\
# Large p, small n regression

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {versions}.

{NOTES}
## Prediction

{_markdown_table(summary, ERRORS)}

## Support

{_markdown_table(summary, SUPPORT)}

## Uncertainty and chains

{_markdown_table(summary, UNCERTAINTY)}

## Settings

{settings}
"""


def draw_errors(rows: list[Row], path: Path) -> None:
    """
    Test MSE of every replicate, one line of points and a box for each method.

    :param rows: of ``replicates.csv``.
    :param path: the PNG to write.
    """
    from matplotlib.figure import Figure

    names = [name for name in ALL if any(row["method"] == name for row in rows)]
    errors = [[float(row["mse"]) for row in rows if row["method"] == name] for name in names]
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(
        errors,
        orientation="horizontal",
        tick_labels=[ALL[name].label for name in names],
        showfliers=False,
        medianprops={"color": "black"},
    )
    jitter = np.random.default_rng(0)
    for position, values in enumerate(errors, start=1):
        heights = position + jitter.uniform(-0.15, 0.15, len(values))
        axes.plot(values, heights, "o", markersize=3.5, alpha=0.6)
    axes.axvline(3.0, color="gray", linestyle=":", label="noise floor")
    axes.set_xscale("log")
    largest = max(max(values) for values in errors)
    ticks = [t for t in (2, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500) if t <= 1.2 * largest]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.invert_yaxis()
    axes.set_xlabel("test MSE of one replicate (log scale)")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=150)


def write_report(rows: list[Row], out: Path, command: str, protocol: Protocol) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``test_mse.png``.

    :returns: the Markdown table of prediction errors, to print.
    """
    summary = summarise(rows)
    summary.to_csv(out / "table.csv", float_format="%.6g")
    write_page(out / "table.md", markdown(summary, command, protocol))
    draw_errors(rows, out / "test_mse.png")
    return _markdown_table(summary, ERRORS)
