# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Means with standard errors over replicates, as a data frame and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .harness import Row

LINE = 120
"""The longest line of prose of a page, in characters."""


def frame(rows: Sequence[Row], figures: Sequence[str]) -> pd.DataFrame:
    """The rows of ``replicates.csv`` with ``seed`` as int and the figures as floats."""
    return pd.DataFrame(rows).astype({"seed": int, **dict.fromkeys(figures, float)})


def mean_and_se(
    table: pd.DataFrame, figures: Sequence[str], by: str | Sequence[str] = "method"
) -> pd.DataFrame:
    """
    Mean and standard error of every figure, one row for each group.

    :param table: of :func:`frame`; nan is left out.
    :param figures: columns to average.
    :param by: column or columns that make the groups.
    :returns: ``replicates``, and ``<figure>_mean`` and ``<figure>_se`` for each figure. The error
        of a single replicate is nan.
    """
    groups = table.groupby(by if isinstance(by, str) else list(by), sort=False)
    means, errors = groups[list(figures)].mean(), groups[list(figures)].sem()
    parts = {"mean": means, "se": errors}
    summary = pd.concat(
        {f"{name}_{part}": values[name] for name in figures for part, values in parts.items()},
        axis=1,
    )
    summary.insert(0, "replicates", groups.size())
    return summary


def cell(mean: float, error: float = float("nan"), decimals: int | None = None) -> str:
    """
    ``mean ± error``, or the mean alone where the error is nan; a dash where the mean is nan.

    :param decimals: of both; by default as many as the size of the mean asks for.
    """
    if np.isnan(mean):
        return "–"
    if decimals is None:
        size = abs(mean)
        decimals = 1 if size >= 100 else 2 if size >= 0.1 or size == 0 else 3 if size >= 0.01 else 4
    text = f"{mean:.{decimals}f}"
    return text if np.isnan(error) else f"{text} ± {error:.{decimals}f}"


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, all others to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def write_page(path: Path, text: str) -> None:
    """Write a Markdown page; its prose is folded, its tables, commands and code are as they are."""
    lines, in_code = [], False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        if in_code or not line or line.startswith(("|", "    ")):
            lines.append(line)
        else:
            indent = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(line, LINE, subsequent_indent=indent, break_on_hyphens=False)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
