# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The effect of each setting, as tables (CSV, Markdown) and a figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, mean_and_se, write_page
from matplotlib.figure import Figure

import pyro_aeb

from .fits import BASE, EFFECTS, FIGURES, METHODS, Protocol

GROUPS = {
    "v0": ("v0, width of the spike", f"{BASE.v0:g}"),
    "v1": ("v1, variance of the slab", f"{BASE.v1:g}"),
    "tau": ("τ, inverse temperature", f"{BASE.tau:g}"),
    "a": ("a, of δ's prior Beta(a, 100)", f"{BASE.a:g}"),
    "omega": ("ω, weight of the stochastic approximation", "10 (1000 + k)^-0.7"),
}
"""The settings that are varied, and their values in the middle."""

NOTES = f"""\
Means ± standard errors over data sets. *Kept* counts the {len(EFFECTS)} real effects whose ρ,
averaged over the draws, is above 1/2, and *others* the zeros. *Excess error* is the mean squared
error of prediction by the posterior mean, less the noise's. *σ* and *δ* are those of the last draw;
the truth is 1 and 0.05. *Coverage* is the share of central 90 % intervals of the real effects that
hold the truth, in per cent, *width* is theirs, and *collapsed* the share of runs that warned of a
δ at 0 or 1.
"""


def write_report(rows: Sequence[Row], folder: Path, command: str, protocol: Protocol) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``choices.png``.

    :param rows: of ``replicates.csv``.
    :param folder: where they go.
    :param str command: the command line that made them.
    :param Protocol protocol: lengths.
    :returns: the tables, to print.
    """
    summary = mean_and_se(frame(rows, FIGURES), FIGURES)
    summary.to_csv(folder / "table.csv")
    tables = "\n\n".join(
        f"## {title}\n\n{_table(summary, _members(summary, key))}"
        for key, (title, _) in GROUPS.items()
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl"))
    page = f"""\
# Settings, one changed at a time

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {packages}.

{NOTES}
{int(summary.replicates.max())} data sets. In the middle: {BASE}; {protocol}.

{tables}
"""
    write_page(folder / "table.md", page)
    _draw(summary, folder / "choices.png")
    return tables


def _members(summary: pd.DataFrame, key: str) -> dict[str, str]:
    """Values of one number, with the middle among them in its place: label to row."""
    found = {name.split(" ", 1)[1]: name for name in METHODS if name.startswith(f"{key} ")}
    found[GROUPS[key][1]] = "base"
    if key != "omega":
        found = dict(sorted(found.items(), key=lambda pair: float(pair[0])))
    return {label: name for label, name in found.items() if name in summary.index}


def _table(summary: pd.DataFrame, members: dict[str, str]) -> str:
    body = []
    for label, name in members.items():
        row = summary.loc[name]

        def of(figure: str, decimals: int, unit: float = 1.0, row: pd.Series = row) -> str:
            mean, error = row[f"{figure}_mean"], row[f"{figure}_se"]
            return cell(unit * mean, unit * error, decimals)

        body.append([
            f"**{label}**" if name == "base" else label, of("kept", 1), of("others", 1),
            of("excess", 2), of("sigma", 2), of("delta", 3), of("coverage", 0, 100.0),
            of("width", 2), f"{row['collapsed_mean']:.1f}",
        ])  # fmt: skip
    header = ["value", "kept", "others", "excess error", "σ", "δ", "coverage, %", "width"]
    return markdown_table([*header, "collapsed"], body)


def _draw(summary: pd.DataFrame, path: Path) -> None:
    """
    Excess error over the values of v0, v1 and tau, with standard errors. A dotted line is at the
    value in the middle; a band has the page's bounds of v0, for an effect of 1/2.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, key in zip(figure.subplots(1, 3, sharey=True), ("v0", "v1", "tau"), strict=True):
        members = _members(summary, key)
        values = [float(label) for label in members]
        rows = summary.loc[list(members.values())]
        axes.errorbar(values, rows["excess_mean"], yerr=rows["excess_se"], fmt="o-", capsize=3)
        axes.axvline(float(GROUPS[key][1]), color="gray", linestyle=":")
        axes.set(title=GROUPS[key][0], xscale="log", yscale="log")
        axes.set_xticks(values, labels=list(members))
        axes.set_yticks([0.2, 0.5, 1.0, 2.0, 5.0], labels=["0.2", "0.5", "1", "2", "5"])
        axes.minorticks_off()
        if key == "v0":
            axes.set_ylabel("excess error")
            axes.axvspan(1 / (100 * 0.5), (1 / 200) ** 0.5, color="C2", alpha=0.15, lw=0)
    figure.savefig(path, dpi=110)
