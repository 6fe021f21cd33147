# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The figures of ``tutorials/state_space.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import baum_welch, kalman

Array = Any


def linear(
    x: Array,
    y: Array,
    learned: Mapping[str, Array],
    exact: kalman.Parameters,
    paths: Array,
    smooth: kalman.Moments,
) -> Figure:
    """
    Parameters on their way, and the smoothed path.

    :param learned: draws of the first run, shape (chains, draws).
    :param paths: of the second, shape (chains, draws, T).
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.0, 1.2])
    for axes, name in zip(above.subplots(1, 3), exact._fields, strict=True):
        axes.plot(learned[name].T, color="C0", linewidth=0.6, alpha=0.6)
        axes.axhline(getattr(exact, name), color="black", linestyle="--")
        axes.set(title=f"{name}: chains, and EM's fixed point (dashed)", xlabel="draw")
    left, right = below.subplots(1, 2, width_ratios=[2.2, 1.0])
    shown = slice(0, 80)
    low, high = np.quantile(paths.reshape(-1, len(y)), (0.05, 0.95), axis=0)
    time = np.arange(len(y))[shown]
    left.fill_between(time, low[shown], high[shown], alpha=0.3, label="draws, 90 %")
    reach = 1.6449 * np.sqrt(smooth.variance)
    for sign, label in ((-1.0, "Kalman smoother, 90 %"), (1.0, None)):
        edge = smooth.mean + sign * reach
        left.plot(time, edge[shown], color="black", linestyle="--", linewidth=0.8, label=label)
    left.plot(time, y[shown], ".", color="0.5", markersize=4, label="observed")
    left.plot(time, x[shown], color="C3", linewidth=1.0, label="true path")
    left.set(title="the path given all observations", xlabel="time")
    left.legend(fontsize="small", ncols=2)
    right.plot(paths.var((0, 1)), ".", markersize=3, label="draws")
    right.plot(
        smooth.variance, color="black", linestyle="--", linewidth=0.8, label="Kalman smoother"
    )
    right.set(title="variance of the path", xlabel="time", ylim=(0.0, None))
    right.legend(fontsize="small", loc="lower right")
    return figure


def hidden_markov(
    learned: Mapping[str, Array],
    exact: baum_welch.Parameters,
    means: Array,
    law: baum_welch.Quadrature,
) -> Figure:
    """
    Parameters on their way, and the posterior of the means.

    :param learned: draws of the first run, shape (chains, draws, ...).
    :param means: draws of the second, shape (chains, draws, 2).
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    numbers = {
        "P(1 → 2)": (learned["transition"][..., 0, 1], exact.transition[0, 1]),
        "P(2 → 1)": (learned["transition"][..., 1, 0], exact.transition[1, 0]),
    }
    for color, (name, (values, value)) in zip(("C0", "C1"), numbers.items(), strict=True):
        panels[0].plot(values.T - value, color=color, linewidth=0.6, alpha=0.6)
        panels[0].plot([], [], color=color, label=f"{name}, less {value:.4f}")
    panels[0].axhline(0.0, color="black", linestyle="--", linewidth=0.9)
    panels[0].set(title="transition, less EM's fixed point", xlabel="draw")
    panels[0].legend()
    panels[1].plot(learned["variance"].T, color="C0", linewidth=0.6, alpha=0.6)
    panels[1].axhline(exact.variance, color="black", linestyle="--", linewidth=0.9)
    panels[1].set(title="variance, and EM's fixed point (dashed)", xlabel="draw")
    for j, color in ((0, "C0"), (1, "C1")):
        centred = (means[..., j] - law.mean()[j]).ravel()
        panels[2].hist(centred, bins=40, density=True, alpha=0.5, color=color,
                       label=f"state {j + 1}, draws")  # fmt: skip
        sd = law.sd()[j]
        line = np.linspace(-4.0 * sd, 4.0 * sd, 201)
        density = np.exp(-(line**2) / (2 * sd**2)) / (sd * np.sqrt(2 * np.pi))
        panels[2].plot(line, density, color=color, label="normal of the exact sd")
    panels[2].set(title="means, less their exact mean", yticks=[], xlim=(-0.2, 0.4))
    panels[2].legend(fontsize="small", loc="center right")
    return figure


def neural(
    x: Array,
    y: Array,
    draws: Mapping[str, Array],
    grid: Array,
    motions: Array,
    true_motion: Callable[[Array], Array],
    truth: Mapping[str, float],
) -> Figure:
    """
    The learned law of motion, the smoothed path, and the noise.

    :param draws: shape (chains, draws, ...).
    :param grid: states, shape (points,).
    :param motions: of every draw at these states, shape (chains, draws, points).
    """
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1.0])
    left, middle, right = above.subplots(1, 3, width_ratios=[1.7, 1.0, 1.0])
    steps = draws["x"].shape[-1]
    flat = motions.reshape(-1, len(grid))
    left.fill_between(grid, *np.quantile(flat, (0.05, 0.95), axis=0), alpha=0.3,
                      label="network, 90 %")  # fmt: skip
    left.plot(grid, flat.mean(0), label="network, mean")
    left.plot(grid, true_motion(grid), color="black", linestyle="--", label="truth")
    left.plot(y[: steps - 1], y[1:steps], ".", color="0.6", markersize=2.5, zorder=0,
              label="pairs of observations")  # fmt: skip
    left.set(title="law of motion f", xlabel="x at t - 1", ylabel="x at t",
             ylim=(-3.5, 3.5))  # fmt: skip
    left.legend(fontsize="small", ncols=2)
    for axes, name in ((middle, "q"), (right, "r")):
        axes.plot(draws[name].T, linewidth=1.0)
        axes.axhline(truth[name], color="black", linestyle="--")
        axes.set(title=f"{name}: chains (dashed: truth)", xlabel="draw", ylim=(0.0, None))
    axes = below.subplots()
    shown = slice(0, 100)
    time = np.arange(steps)[shown]
    paths = draws["x"].reshape(-1, steps)
    low, high = np.quantile(paths, (0.05, 0.95), axis=0)
    axes.fill_between(time, low[shown], high[shown], alpha=0.3, label="draws, 90 %")
    axes.plot(time, x[:steps][shown], color="C3", linewidth=1.0, label="true path")
    axes.plot(time, y[:steps][shown], ".", color="0.5", markersize=4, label="observed")
    axes.set(title="the path given all observations", xlabel="time")
    axes.legend(fontsize="small", ncols=3)
    return figure
