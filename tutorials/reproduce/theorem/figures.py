# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The theorem as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .designs import fixed_point
from .runs import CHECKPOINTS, WEIGHTS, Array, Protocol
from .settings import CONTROLS, LARGE_STEP, LAW, SETTINGS, THEOREM

COLOURS = ("#1b6ca8", "#d1642c", "#3a8f5c", "#7a4b94", "#444444")


def rates(table: pd.DataFrame, protocol: Protocol) -> Figure:
    """Errors against weights and steps, four panels."""
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    axes = figure.subplots(2, 2)
    _theorem(axes[0, 0], table, protocol)
    _controls(axes[0, 1], table, protocol)
    _conditions(axes[1, 0], table, protocol)
    _two_points(axes[1, 1], table, protocol)
    return figure


def law(table: pd.DataFrame) -> Figure:
    """The distance of the weights' law from exp(tau Q) against the step size."""
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axis = figure.subplots()
    names = [name for name in LAW if name in table.index]
    steps = np.array([LAW[name].fixed_step for name in names])
    for j, colour in zip(WEIGHTS, COLOURS, strict=False):
        axis.plot(steps, table.loc[names, f"w1_predicted_{j}"], "-", color=colour, lw=1)
        axis.plot(steps, table.loc[names, f"w1_{j}"], "o", color=colour, label=f"β{j}, chains")
    axis.plot([], [], "-", color="grey", lw=1, label="by quadrature")
    _labels(axis, "step size × curvature, ε h", "W1 to exp(τ Q(·; θ*)), in sd of it")
    axis.set_title("Law of the weights")
    axis.set_xticks(steps, [f"{step:g}" for step in steps])
    axis.legend()
    return figure


def _errors(table: pd.DataFrame, name: str, target: str) -> Array:
    columns = [f"{target}_{i}" for i in range(1, CHECKPOINTS + 1)]
    return table.loc[name, columns].to_numpy(dtype=float)


def _omegas(name: str, protocol: Protocol) -> Array:
    return np.array([SETTINGS[name].omega(k) for k in protocol.checkpoints(SETTINGS[name])])


def _labels(axis: Any, x: str, y: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axis.grid(alpha=0.25, which="major")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_minor_formatter(NullFormatter())


def _guide(axis: Any, x: Array, y: float, slope: float, label: str) -> None:
    """A dashed line of a slope that ends at y where x is smallest."""
    ends = np.array([x.min(), x.max()])
    axis.plot(ends, y * (ends / ends[0]) ** slope, "--", color="black", lw=0.9, label=label)


def _theorem(axis: Any, table: pd.DataFrame, protocol: Protocol) -> None:
    shown = [name for name in THEOREM if name in table.index]
    for name, colour, marker in zip(THEOREM, COLOURS, "osD^", strict=False):
        if name in shown:
            row = table.loc[name]
            label = (
                f"{SETTINGS[name].label}: slope {row.chain_slope:.2f} ± {row.chain_slope_se:.2f}"
            )
            axis.plot(_omegas(name, protocol), _errors(table, name, "chain"), marker, ms=4,
                      color=colour, label=label)  # fmt: skip
    if shown:
        x = np.concatenate([_omegas(name, protocol) for name in shown])
        last = _errors(table, shown[-1], "chain")[-1]
        _guide(axis, x, 0.5 * last, 1.0, "slope 1")
        axis.legend()
    axis.set_title("The theorem: error is of the order of ω_k")
    _labels(axis, "weight ω_k", "mean of ||θ_k − θ*||²")


def _controls(axis: Any, table: pd.DataFrame, protocol: Protocol) -> None:
    names = ["alpha 0.75", *CONTROLS]
    for name, colour in zip(names, COLOURS, strict=True):
        if name in table.index:
            steps = protocol.checkpoints(SETTINGS[name])
            label = SETTINGS[name].label
            axis.plot(
                steps, _errors(table, name, "chain"), "o-", ms=3, lw=1, color=colour, label=label
            )
    axis.set_title("Controls: with a constant ω the error stays")
    _labels(axis, "step k", "mean of ||θ_k − θ*||²")
    axis.legend()


def _conditions(axis: Any, table: pd.DataFrame, protocol: Protocol) -> None:
    shown = [
        ("small gain", "chain", "α = 1, gain C L = 1/4", 0.5),
        ("alpha 0.75", "limit", f"ε h = {LARGE_STEP}, to θ* of small steps", None),
        ("smaller step", "limit", "ε h = 0.2, to θ* of small steps", None),
        ("shrinking step", "limit", "ε ∝ k^(-1/4), to θ* of small steps", None),
    ]
    for (name, target, label, slope), colour in zip(shown, COLOURS, strict=False):
        if name not in table.index:
            continue
        x, y = _omegas(name, protocol), _errors(table, name, target)
        axis.plot(x, y, "o", ms=4, color=colour, label=label)
        if slope is not None:
            _guide(axis, x, y[-1], slope, f"slope {slope:g}")
        step = SETTINGS[name].fixed_step
        if target == "limit" and step is not None:
            gap = fixed_point("main", step) - fixed_point("main", 0.0)
            axis.axhline(float(gap @ gap), color=colour, lw=0.9, ls=":")
    axis.plot([], [], ":", color="grey", label="||θ*_ε − θ*||², by quadrature")
    axis.set_title("Without enough gain, or with steps that stay large")
    _labels(axis, "weight ω_k", "mean of ||θ_k − θ*||²")
    axis.set_ylim(bottom=axis.get_ylim()[0] / 5)  # room for the legend
    axis.legend(fontsize=8, loc="lower left")


def _two_points(axis: Any, table: pd.DataFrame, protocol: Protocol) -> None:
    name = "two points"
    axis.set_title("Where two fixed points attract")
    if name in table.index:
        x = _omegas(name, protocol)
        for target, label, colour in (
            ("chain", "to one of the two", COLOURS[1]),
            ("nearest", "to the nearer", COLOURS[0]),
        ):
            axis.plot(x, _errors(table, name, target), "o", ms=4, color=colour, label=label)
        _guide(axis, x, _errors(table, name, "nearest")[-1], 1.0, "slope 1")
        axis.legend()
    _labels(axis, "weight ω_k", "mean of ||θ_k − θ*||²")
