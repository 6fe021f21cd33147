# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The table of all runs, as CSV and Markdown."""

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

from .problems import FIGURES, METHODS

HEADERS = {
    "coverage": {
        "sd_ratio": "sd of undecided weights / exact",
        "inclusion_rms": "inclusion, rms",
        "coverage_points": "coverage less exact, points",
        "sigma_sd_ratio": "sd of σ / exact",
        "seconds": "seconds",
    },
    "wide": {
        "sigma_error": "σ less exact",
        "largest_sigma_error": "largest",
        "third_rms": "P(β3) less exact, rms",
        "largest_third_error": "largest",
        "largest_in_slab": "most in the slab",
        "mse_over_exact": "test MSE less exact",
        "test_mse": "test MSE",
        "seconds": "seconds",
        "exact_seconds": "exact, seconds",
    },
    "logistic": {
        "inclusion_rms": "inclusion, rms",
        "accepted": "flips accepted",
        "seconds": "seconds",
    },
    "batches": {
        "sigma_sd_ratio": "sd of σ / exact",
        "sigma_error": "σ less exact",
        "inclusion_rms": "inclusion, rms",
        "seconds": "seconds",
    },
    "sigma": {"sigma_ratio": "σ / expected", "sigma": "σ"},
    "cost": {
        "step_ratio": "a step / one by stochastic approximation",
        "scan_in_steps": "a scan, in steps",
    },
}
"""What is shown of each kind of problem."""


def write_report(rows: Sequence[Row], folder: Path, command: str) -> str:
    """Write ``table.csv`` and ``table.md``; return the tables."""
    table = frame(rows, FIGURES)
    parts, lines = [], []
    for kind, headers in HEADERS.items():
        own = []
        for problem, methods in METHODS.items():
            for method in methods if problem.split()[0] == kind else ():
                runs = table[table.method == f"{problem}; {method}"]
                if runs.empty:
                    continue
                found = summarize(runs)
                values = {name: found[name] for name in headers}
                lines += [
                    {"problem": problem, "method": method, "sets": len(runs), "figure": name,
                     "value": f"{mean:.4g}", "error": f"{error:.2g}"}
                    for name, (mean, error) in values.items()
                ]  # fmt: skip
                own.append(
                    [
                        f"{problem}, {method}",
                        str(len(runs)),
                        *(cell(*v, 3) for v in values.values()),
                    ]
                )
        if own:
            parts.append(f"## {kind}\n\n" + markdown_table(["", "sets", *headers.values()], own))
    pd.DataFrame(lines).to_csv(folder / "table.csv", index=False)
    tables = "\n\n".join(parts)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyro-ppl", "scipy"))
    page = (
        f"# Beside the exact posterior\n\n    {command}\n\npyro_aeb {pyro_aeb.__version__}, Python "
        f"{platform.python_version()}, {packages}. Means ± standard errors over data sets; "
        f"seconds of one core, of all chains.\n\n{tables}\n"
    )
    write_page(folder / "table.md", page)
    return tables


def summarize(runs: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Means and standard errors over data sets, undecided weights counting alike; NaN for none."""
    nan = float("nan")
    found = {name: (float(runs[name].mean()), float(runs[name].sem())) for name in FIGURES}
    found |= dict.fromkeys(("inclusion_rms", "sd_ratio", "coverage_points"), (nan, nan))
    weights = runs.undecided.fillna(1.0).clip(lower=0.0)
    some = runs[weights > 0]
    count = weights[weights > 0]
    if len(some):
        square = np.average(some.inclusion_square, weights=count)
        found["inclusion_rms"] = float(np.sqrt(square)), nan
        found["sd_ratio"] = _weighted(some.sd_ratio, count)
        found["coverage_points"] = _weighted(100 * (some.covered - some.exact_covered), count)
    absolute = runs[["sigma_error", "third_error"]].abs().max()
    return found | {
        "third_rms": (float(np.sqrt((runs.third_error**2).mean())), nan),
        "largest_sigma_error": (float(absolute.sigma_error), nan),
        "largest_third_error": (float(absolute.third_error), nan),
        "largest_in_slab": (float(runs.most_in_slab.max()), nan),
    }


def _weighted(values: pd.Series, weights: pd.Series) -> tuple[float, float]:
    """A weighted mean over data sets, and its standard error."""
    mean = float(np.average(values, weights=weights))
    share = weights / weights.sum()
    return mean, float(np.sqrt((share**2 * (values - mean) ** 2).sum()))
