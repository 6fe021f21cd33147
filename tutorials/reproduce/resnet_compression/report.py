# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finished rows as tables (CSV, Markdown) and as a figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, mean_and_se, write_page

import pyro_aeb

from . import dense
from .methods import METHODS, parse_task, task_name
from .sparse import FIGURES, settings_of
from .training import Run

#: The row that the paired differences are taken against.
REFERENCE = "a-sghmc-sa"

#: The paper's accuracies by target sparsity, of one seed at its best epoch on the test set.
PAPER = {
    "a-sghmc": {30: 94.07, 50: 94.16, 70: 93.16, 90: 90.59},
    "a-sghmc-em": {30: 94.18, 50: 94.19, 70: 93.41, 90: 91.12},
    "sghmc-sa": {30: 94.13, 50: 94.11, 70: 93.52, 90: 91.45},
    "a-sghmc-sa": {30: 94.23, 50: 94.27, 70: 93.74, 90: 91.68},
}
PAPER_DENSE = 94.12

NOTES = """\
Means ± standard errors over the seeds of the sparse stage; the dense network is the same for all.
Accuracies and drops are in percent and in points. *Last* is the last draw, after the last epoch;
*average* is the posterior average over the last draws. Nothing was chosen on test images.

- *Drop*: the accuracy of the dense network's last draw minus that of the row. The paper's drop is
  that of its table, one seed at the best of its epochs on the test set.
- *Difference*: accuracy minus that of {reference} at the same seed, in points; the mean over the
  seeds that both rows have.
- *Corrupted*: accuracy in percent on the first test images, corrupted in five ways, the mean over
  the ways; the same of NLL.
- *Zeros*: number and share of zeros among all parameters of the last network, batch norms and all.
- *Seconds*: processor time of one run, without the scoring at its end.
"""


def tabulate(rows: list[Row]) -> pd.DataFrame:
    """
    Mean and standard error of every figure, one line for each sparsity and method.

    :param rows: of ``replicates.csv``.
    """
    table = frame(rows, FIGURES)
    names = table["method"].map(parse_task)
    table["method"], table["target"] = names.str[0], names.str[1]
    keys = ["target", "seed"]
    reference = table[table["method"] == REFERENCE].set_index(keys)
    index = pd.MultiIndex.from_frame(table[keys])
    for which in ("last", "average"):
        column = f"accuracy_{which}"
        theirs = reference[column].reindex(index).to_numpy()
        table[f"difference_{which}"] = 100.0 * (table[column] - theirs)
        table.loc[table["method"] == REFERENCE, f"difference_{which}"] = np.nan
        table[column] = 100.0 * table[column]
        table[f"accuracy_corrupted_{which}"] *= 100.0
    table["sparsity"] = 100.0 * table["sparsity"]
    figures = [*FIGURES, "difference_last", "difference_average"]
    summary = mean_and_se(table, figures, by=("target", "method"))
    order = [(p, m) for p in sorted(table["target"].unique()) for m in METHODS]
    return summary.loc[[key for key in order if key in summary.index]]


def paper_drop(method: str, percent: int) -> float:
    """The paper's drop in accuracy, in points; nan where it has none."""
    return PAPER_DENSE - PAPER.get(method, {}).get(percent, np.nan)


COLUMNS = {
    "accuracy_last": ("accuracy, last", 2),
    "accuracy_average": ("accuracy, average", 2),
    "drop_last": ("drop, last", 2),
    "drop_average": ("drop, average", 2),
    "difference_last": ("difference, last", 2),
    "difference_average": ("difference, average", 2),
}
MORE_COLUMNS = {
    "nll_last": ("NLL, last", 4),
    "nll_average": ("NLL, average", 4),
    "ece_last": ("ECE, last", 4),
    "ece_average": ("ECE, average", 4),
    "accuracy_corrupted_last": ("corrupted, last", 2),
    "accuracy_corrupted_average": ("corrupted, average", 2),
    "nll_corrupted_last": ("NLL corrupted, last", 4),
    "nll_corrupted_average": ("NLL corrupted, average", 4),
    "zeros": ("zeros", 0),
    "sparsity": ("zeros, %", 4),
    "sigma": ("σ", 3),
    "delta": ("δ, mean", 3),
    "seconds": ("seconds", 0),
}


def _table(summary: pd.DataFrame, columns: dict[str, tuple[str, int]], paper: bool) -> str:
    header = ["sparsity", "method", "seeds", *(label for label, _ in columns.values())]
    lines = []
    for (percent, method), row in summary.iterrows():
        cells = [cell(row[f"{key}_mean"], row[f"{key}_se"], n) for key, (_, n) in columns.items()]
        line = [f"{percent} %", METHODS[method].label, str(int(row["replicates"])), *cells]
        lines.append(line + [cell(paper_drop(method, percent), decimals=2)] * paper)
    return markdown_table([*header, *["paper's drop"] * paper], lines)


def accuracy_table(summary: pd.DataFrame) -> str:
    """Accuracies, drops and paired differences, as Markdown."""
    return _table(summary, COLUMNS, paper=True)


def write(rows: list[Row], dense_figures: dict[str, float], run: Run, command: str) -> str:
    """
    Writes ``table.csv``, ``table.md``, ``drops.png`` and, of runs with images held out,
    ``curves.png``.

    :param rows: of ``replicates.csv``.
    :param dense_figures: of the dense network.
    :param Run run: that made them.
    :param str command: the command line.
    :returns: the Markdown table of accuracies, to print.
    """
    summary = tabulate(rows)
    summary.to_csv(run.out / "table.csv", float_format="%.6g")
    page = markdown(summary, dense_figures, run, command)
    write_page(run.out / "table.md", page)
    draw_drops(rows, run.out / "drops.png")
    if curves := sorted((run.out / "curves").glob("*.csv")):
        draw_curves(curves, run.out / "curves.png")
    return accuracy_table(summary)


def markdown(summary: pd.DataFrame, dense_figures: dict[str, float], run: Run, command: str) -> str:
    """
    The tables as a page.

    :param summary: of :func:`tabulate`.
    :param dense_figures: of the dense network.
    :param Run run: that made them.
    :param str command: the command line.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl"))
    names = [task_name(method, percent) for percent, method in summary.index]
    settings = "\n".join(
        f"- `{name}`: {settings_of(name, run.protocol, run.score)}" for name in names
    )
    accuracy, nll = (
        f"{scale * dense_figures[f'{score}_last']:.{n}f} (last), "
        f"{scale * dense_figures[f'{score}_average']:.{n}f} (average)"
        for score, scale, n in (("accuracy", 100.0, 2), ("nll", 1.0, 4))
    )
    return f"""\
# ResNet20 on CIFAR-10, compressed

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {versions}.

{NOTES.format(reference=METHODS[REFERENCE].label)}
The dense network: accuracy {accuracy}, NLL {nll}, {dense_figures["seconds"]:.0f} seconds. It was
made with {dense.settings(run.protocol)}.

## Accuracy

{accuracy_table(summary)}

## Calibration, zeros, latents, time

{_table(summary, MORE_COLUMNS, paper=False)}

## Settings

{settings}
"""


def draw_drops(rows: list[Row], path: Path) -> None:
    """
    The drop in accuracy of every run against the target sparsity, a colour a method.

    :param rows: of ``replicates.csv``.
    :param path: the PNG to write.
    """
    from matplotlib.figure import Figure

    table = frame(rows, FIGURES)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    percents = sorted({parse_task(name)[1] for name in table["method"]})
    for axes, which in zip(panels, ("last", "average"), strict=True):
        for i, (key, method) in enumerate(METHODS.items()):
            xs, ys = [], []
            for name, drop in zip(table["method"], table[f"drop_{which}"], strict=True):
                if parse_task(name)[0] == key:
                    xs.append(percents.index(parse_task(name)[1]) + 0.14 * (i - 2))
                    ys.append(drop)
            axes.plot(xs, ys, "o", markersize=5, alpha=0.8, label=method.label)
        axes.axhline(0.0, color="gray", linewidth=0.8)
        axes.set_xticks(range(len(percents)), [f"{p} %" for p in percents])
        axes.set_xlim(-0.6, len(percents) - 0.4)
        axes.set_xlabel("zeros among all weights")
        axes.set_title({"last": "last draw", "average": "posterior average"}[which])
    panels[0].set_ylabel("drop in accuracy from dense, points")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def draw_curves(paths: Sequence[Path], path: Path) -> None:
    """
    Accuracy on held-out images against epochs, of the dense stage and of the rows.

    :param paths: of CSV files with columns ``epoch`` and ``accuracy``, named after runs.
    :param path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    labels: set[str] = set()
    for file in paths:
        curve = pd.read_csv(file)
        is_dense = file.stem.startswith("dense")
        name = file.stem.rpartition("-")[0]
        label = "dense" if is_dense else f"{METHODS[parse_task(name)[0]].label}, {name[-2:]} %"
        color = f"C{([*METHODS, ''].index('' if is_dense else parse_task(name)[0]))}"
        own = "_" + label if label in labels else label
        panels[0 if is_dense else 1].plot(
            curve["epoch"], 100.0 * curve["accuracy"], color=color, label=own
        )
        labels.add(label)
    for axes, title in zip(panels, ("dense stage", "sparse stage"), strict=True):
        axes.set(title=title, xlabel="epoch", ylabel="held-out images right, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
