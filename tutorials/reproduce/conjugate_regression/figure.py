# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The figure of ``custom_kernel.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from .problem import BATCH, Exact, excess


def draw(
    exact: Exact,
    own: dict[str, Any],
    steps: list[float],
    measured: dict[str, Any],
    traces: dict[str, Any],
) -> Figure:
    """
    Draws of our kernel on the exact density; errors over step sizes; what AEBKernel has learned.

    :param Exact exact: the posterior.
    :param own: draws of beta_1, by name of the run.
    :param steps: epsilon h.
    :param measured: variances over the exact one, by sampler, at these values.
    :param traces: of ``to_arviz``, of the sparse runs, by name.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 2)

    axes = panels[0, 0]
    law = exact.beta
    grid = np.linspace(law.mean()[0] - 5 * law.std()[0], law.mean()[0] + 5 * law.std()[0], 200)
    for name, draws in own.items():
        axes.hist(draws, bins=40, density=True, histtype="step", label=name.replace("epsilon", "ε"))
    density = stats.t(2 * exact.shape, loc=exact.mean[0], scale=law.std()[0]).pdf(grid)
    axes.plot(grid, density, color="black", label="exact")
    axes.set(title="a kernel of our own: draws of β1", xlabel="β1", yticks=[], xlim=grid[[0, -1]])
    axes.legend(fontsize=8)

    axes = panels[0, 1]
    fine = np.geomspace(steps[0], steps[-1], 50)
    for batch_size, style in ((None, "-"), (BATCH, "--")):
        label = f"formula, {'all rows' if batch_size is None else f'{BATCH} rows, independent'}"
        axes.plot(
            fine, [excess(h, batch_size) for h in fine], style, color="gray", lw=1, label=label
        )
    for (name, ratios), marker in zip(measured.items(), "osv^", strict=True):
        axes.plot(steps, ratios, marker, label=name)
    axes.set(title="variance over the exact one", xlabel="ε h", xscale="log", yscale="log")
    axes.set_yticks([1, 1.5, 2, 3, 4], labels=["1", "1.5", "2", "3", "4"])
    axes.set_xticks(steps, labels=[f"{h:g}" for h in steps])
    axes.minorticks_off()
    axes.legend(fontsize=8)

    learned, pruned = traces.values()
    inclusion = learned.adaptation["beta_rho"].values[0]
    axes = panels[1, 0]
    axes.plot(inclusion[:, 3:], color="C0", lw=0.7, alpha=0.5)
    axes.plot(inclusion[:, :3], color="C3")
    axes.axhline(0.5, color="gray", linestyle=":")
    axes.set(title="AEBKernel: P(slab) of 40 features (red: the three that matter)", xlabel="draw")

    axes = panels[1, 1]
    for trace, style, tail in ((learned, "-", ""), (pruned, "--", ", with pruning")):
        axes.plot(trace.posterior["sigma2"].values[0], f"C0{style}", label=f"σ²{tail}")
    axes.plot(learned.posterior["delta"].values[0], "C1", label="δ")
    zeros = (pruned.posterior["beta"].values[0] == 0).mean(-1)
    axes.plot(zeros, "C2--", label="share of zeros, with pruning")
    axes.set(title="AEBKernel: latents and pruning", xlabel="draw", ylim=(0.0, 1.6))
    axes.legend(fontsize=8)
    return figure
