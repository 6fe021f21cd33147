# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The finished runs as tables (CSV, Markdown) and as figures."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, write_page

import pyro_aeb

from . import figures
from .designs import fixed_point, gain
from .runs import FIGURES, WEIGHTS, Protocol, settings_of
from .settings import CONTROLS, LARGE_STEP, LAW, SETTINGS, THEOREM

NOTES = """\
Means over independent chains. *Error* is the mean of ||θ_k − θ*||² at the last step, with θ =
(ρ, q, σ, δ). *Slope* is that of log error against log ω_k over 24 checkpoints from step 200 on, by
least squares, with a standard error by the jackknife over 20 groups of chains. "θ* of the chain" is
the fixed point of the chain with its steps of finite size, "θ* of small steps" that of exp(τ Q);
both by quadrature.
"""


def write_report(rows: Sequence[Row], folder: Path, command: str, protocol: Protocol) -> str:
    """
    Writes ``table.csv``, ``table.md``, ``rates.png`` and ``law.png``.

    :param rows: of ``replicates.csv``.
    :param folder: where they go.
    :param str command: the command line that made them.
    :param Protocol protocol: sizes.
    :returns: the tables, to print.
    """
    table = frame(rows, FIGURES).set_index("method")
    table = table.loc[[name for name in SETTINGS if name in table.index]]
    table.to_csv(folder / "table.csv")
    page = markdown(table, command, protocol)
    write_page(folder / "table.md", page)
    figures.rates(table, protocol).savefig(folder / "rates.png", dpi=110)
    if any(name in table.index for name in LAW):
        figures.law(table).savefig(folder / "law.png", dpi=110)
    return page


def markdown(table: pd.DataFrame, command: str, protocol: Protocol) -> str:
    """The tables as a page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl"))
    settings = "\n".join(f"- `{name}`: {settings_of(name, protocol)}" for name in table.index)
    return f"""\
# The convergence theorem

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {packages}.

{NOTES}
{protocol.chains} chains; L, the smallest rate at which the mean field returns to θ*, is {
        gain("main", LARGE_STEP):.3f}.

## Rates

{_rates(table)}

## Controls

{_controls(table)}

## Conditions

{_conditions(table)}

## Law of the weights

{_law(table)}

## Settings

{settings}
"""


def _some(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, pd.Series]]:
    return [(SETTINGS[name].label, table.loc[name]) for name in names if name in table.index]


def _last(row: pd.Series, target: str) -> str:
    error = cell(1e3 * row[f"{target}_24"], 1e3 * row[f"{target}_last_se"], 3)
    return error


def _slope(row: pd.Series, target: str) -> str:
    return cell(row[f"{target}_slope"], row[f"{target}_slope_se"], 3)


def _rates(table: pd.DataFrame) -> str:
    lines = [[label, _slope(row, "chain"), _last(row, "chain")] for label, row in
             _some(table, list(THEOREM))]  # fmt: skip
    return markdown_table(["ω_k = C / (A + k)^α", "slope", "1000 × last error"], lines)


def _controls(table: pd.DataFrame) -> str:
    lines = [[label, _last(row, "chain")] for label, row in _some(table, list(CONTROLS))]
    text = markdown_table(["ω", "1000 × last error"], lines)
    known = [name for name in list(CONTROLS)[:3] if name in table.index]
    if len(known) < 3:
        return text
    slope, error = plateau_slope(table, known)
    return (
        f"{text}\n\nSlope of log error against log ω over the first three: {cell(slope, error, 2)}."
    )


def plateau_slope(table: pd.DataFrame, names: Sequence[str]) -> tuple[float, float]:
    """The slope over runs of constant omega, and its standard error from those of the errors."""
    omegas = [SETTINGS[name].omega(1) for name in names]
    rows = table.loc[list(names)]
    x = np.log(omegas) - np.mean(np.log(omegas))
    relative = (rows["chain_last_se"] / rows["chain_24"]).to_numpy()
    slope = x @ np.log(rows["chain_24"].to_numpy()) / (x @ x)
    return float(slope), float(np.sqrt(x**2 @ relative**2) / (x @ x))


def _conditions(table: pd.DataFrame) -> str:
    lines = []
    named = [
        ("small gain", "chain", "θ* of the chain", 0.5),
        ("alpha 0.75", "limit", "θ* of small steps", 0.0),
        ("smaller step", "limit", "θ* of small steps", 0.0),
        ("smaller step", "chain", "θ* of the chain", 1.0),
        ("shrinking step", "limit", "θ* of small steps", 2 / 3),
        ("two points", "chain", "one of the two", 0.0),
        ("two points", "nearest", "the nearer of the two", 1.0),
    ]
    for name, target, words, expected in named:
        for label, row in _some(table, [name]):
            label = f"{label}, ε h = {LARGE_STEP}" if name == "alpha 0.75" else label
            cells = [
                _slope(row, target),
                f"{expected:.2f}",
                _last(row, target),
                floor(name, target),
            ]
            lines.append([label, words, *cells])
    header = [
        "run",
        "error to",
        "slope",
        "by the theory, in the end",
        "1000 × last error",
        "1000 × floor",
    ]
    text = markdown_table(header, lines)
    if "two points" in table.index:
        share = table.loc["two points", "second_share"]
        text += f"\n\n{100 * share:.1f} % of the chains ended at the second of the two points."
    return text


def floor(name: str, target: str) -> str:
    """Return what is left, by quadrature, of the error to theta* where steps stay large."""
    setting = SETTINGS[name]
    if target != "limit" or setting.fixed_step is None:
        return "–"
    gap = fixed_point(setting.design, setting.fixed_step) - fixed_point(setting.design, 0.0)
    return cell(1e3 * float(gap @ gap), decimals=3)


def _law(table: pd.DataFrame) -> str:
    lines = [
        [label, *(f"{row[f'{what}_{j}']:.4f}" for j in WEIGHTS for what in ("w1", "w1_predicted"))]
        for label, row in _some(table, list(LAW))
    ]
    header = ["step size × curvature"]
    header += [f"{what}, β{j}" for j in WEIGHTS for what in ("W1", "predicted")]
    return markdown_table(header, lines)
