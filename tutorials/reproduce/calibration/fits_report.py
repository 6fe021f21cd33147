# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Coverage and comparison with the exact posterior, as tables (CSV, Markdown) and a figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from common.harness import Row
from common.tables import cell, frame, markdown_table, write_page
from matplotlib.figure import Figure

import pyro_aeb

from .exact import Array
from .fits import FIGURES, METHODS, TRUTH, P, Protocol, settings_of

PAIRS = {
    "marginal fixed": "exact fixed",
    "adaptive fixed": "exact fixed",
    "adaptive": "exact",
}
"""Which exact posterior a row is held against: that of the same prior."""

GROUPS = {
    **{f"β = {TRUTH[j]:g}": np.arange(P) == j for j in np.flatnonzero(TRUTH)},
    "not zero": TRUTH != 0.0,
    "zero": TRUTH == 0.0,
}
NOTES = """\
Means ± standard errors over data sets. *Coverage* is the share, in per cent, of central 90 %
intervals that hold the true weight; *width* is theirs. *One chain*: by the first chain's draws
alone. *Undecided* are weights that the exact posterior gives an inclusion probability between 0.1
and 0.9, and *decided* all others. Differences of means are in standard deviations of the exact
posterior.
"""


def write_report(rows: Sequence[Row], folder: Path, command: str, protocol: Protocol) -> str:
    """
    Writes ``table.csv``, ``table.md`` and ``against_exact.png``.

    :param rows: of ``replicates.csv``.
    :param folder: where they go.
    :param str command: the command line that made them.
    :param Protocol protocol: lengths.
    :returns: the tables, to print.
    """
    table = frame(rows, FIGURES).sort_values("seed", kind="stable")
    names = [name for name in METHODS if (table.method == name).any()]
    lines = coverage(table, names)
    pd.DataFrame(lines).to_csv(folder / "table.csv", index=False)
    tables = f"## Coverage\n\n{_coverage_table(lines, 'coverage', 100.0)}\n\n"
    tables += f"## Width\n\n{_coverage_table(lines, 'width', 1.0)}\n\n"
    tables += f"## Against the exact posterior\n\n{_comparison(table)}\n\n"
    tables += f"## Latents\n\n{_latents(table, names)}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "scipy"))
    settings = "\n".join(f"- `{name}`: {settings_of(name, protocol)}" for name in names)
    page = f"""\
# Coverage

    {command}

pyro_aeb {pyro_aeb.__version__}, Python {platform.python_version()}, {packages}.

{NOTES}
{table.seed.nunique()} data sets.

{tables}

## Settings

{settings}
"""
    write_page(folder / "table.md", page)
    draw_comparison(table, folder / "against_exact.png")
    return tables


def _values(table: pd.DataFrame, name: str, what: str) -> Array:
    """A figure of all weights, shape (data sets, p)."""
    columns = [f"{what}_{j}" for j in range(1, P + 1)]
    return table.loc[table.method == name, columns].to_numpy(dtype=float)


def coverage(table: pd.DataFrame, names: Sequence[str]) -> list[dict[str, float | str]]:
    """
    Coverage and width of the intervals, with standard errors over data sets, a line for each row,
    kind of interval and group of weights.
    """
    lines: list[dict[str, float | str]] = []
    for name in names:
        for prefix, words in (("", ""), ("first_", ", one chain")):
            low, high = _values(table, name, f"{prefix}low"), _values(table, name, f"{prefix}high")
            if np.isnan(low).all():
                continue
            for group, members in GROUPS.items():
                hits = ((low <= TRUTH) & (high >= TRUTH))[:, members].mean(1)
                widths = (high - low)[:, members].mean(1)
                line: dict[str, float | str] = {"row": METHODS[name] + words, "weights": group}
                for what, v in (("coverage", hits), ("width", widths)):
                    error = v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan
                    line |= {what: float(v.mean()), f"{what}_se": float(error)}
                lines.append(line)
    return lines


def _coverage_table(lines: list[dict[str, float | str]], what: str, unit: float) -> str:
    found = pd.DataFrame(lines)
    body = []
    for row in found.row.unique():
        of = found[found.row == row].set_index("weights")
        decimals = 1 if unit > 1.0 else 2
        cells = [
            cell(unit * of.loc[group, what], unit * of.loc[group, f"{what}_se"], decimals)
            for group in GROUPS
        ]
        body.append([str(row), *cells])
    return markdown_table(["intervals", *GROUPS], body)


def _paired(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The rows of a method and of its exact posterior, for the data sets that have both."""
    own = table[table.method == name].set_index("seed")
    exact = table[table.method == PAIRS[name]].set_index("seed")
    both = own.index.intersection(exact.index)
    if both.empty:
        return None
    return own.loc[both].reset_index(), exact.loc[both].reset_index()


def _comparison(table: pd.DataFrame) -> str:
    body = []
    for name in PAIRS:
        pair = _paired(table, name)
        if pair is None:
            continue
        own, exact = pair
        sd, rho = _values(exact, PAIRS[name], "sd"), _values(exact, PAIRS[name], "inclusion")
        shift = (_values(own, name, "mean") - _values(exact, PAIRS[name], "mean")) / sd
        ratio = _values(own, name, "sd") / sd
        gap = _values(own, name, "inclusion") - rho
        undecided = (rho > 0.1) & (rho < 0.9)
        for words, of in (("decided", ~undecided), ("undecided", undecided)):
            if of.any():
                body.append([
                    METHODS[name], words, str(int(of.sum())),
                    f"{np.sqrt((shift[of] ** 2).mean()):.3f}",
                    f"{np.exp(np.log(ratio[of]).mean()):.3f}",
                    f"{np.exp(np.log(ratio[of]).std()) - 1:.3f}",
                    f"{gap[of].mean():+.3f}", f"{np.sqrt((gap[of] ** 2).mean()):.3f}",
                ])  # fmt: skip
    header = ["row", "weights", "number", "means, rms difference", "sd, mean ratio", "sd, spread"]
    return markdown_table([*header, "inclusion, mean difference", "inclusion, rms"], body)


def _latents(table: pd.DataFrame, names: Sequence[str]) -> str:
    body = []
    for name in names:
        of = table[table.method == name]
        spread = of.spread.dropna()
        shares = f"{100 * (spread > 0.5).mean():.0f} %" if len(spread) else "–"
        body.append([METHODS[name], *(cell(of[key].mean(), of[key].sem(), 3)
                                      for key in ("sigma", "delta")), shares])  # fmt: skip
    return markdown_table(["row", "σ", "δ", "chains apart by over 1/2 in a ρ"], body)


def draw_comparison(table: pd.DataFrame, path: Path) -> None:
    """
    Posterior means, standard deviations and inclusion probabilities against the exact ones, a point
    for each weight of each data set.

    :param path: the PNG to write.
    """
    figure = Figure(figsize=(11, 10.5), layout="constrained")
    axes = figure.subplots(len(PAIRS), 3)
    titles = {"mean": "posterior mean", "sd": "posterior sd", "inclusion": "inclusion probability"}
    for line, name in zip(axes, PAIRS, strict=True):
        pair = _paired(table, name)
        for axis, (what, title) in zip(line, titles.items(), strict=True):
            axis.set(title=title if axis in axes[0] else "", xlabel="exact, by Gibbs sampling")
            if pair is None:
                continue
            own = _values(pair[0], name, what)
            exact = _values(pair[1], PAIRS[name], what)
            zero = TRUTH == 0.0
            for of, colour, words in ((zero, "#8a8a8a", "zero"), (~zero, "#d1642c", "not zero")):
                points = exact[:, of].ravel(), own[:, of].ravel()
                axis.plot(*points, "o", ms=2.5, alpha=0.5, mew=0, color=colour, label=words)
            ends = [min(exact.min(), own.min()), max(exact.max(), own.max())]
            axis.plot(ends, ends, "-", color="black", lw=0.8)
            axis.set_aspect("equal")
        line[0].set_ylabel(METHODS[name].replace(", ", ",\n"))
    axes[0, 0].legend(fontsize=8, markerscale=2)
    figure.savefig(path, dpi=110)
