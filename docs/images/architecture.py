# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Draw the wings of the package on their levels, for ``docs/architecture.md``.

The levels are those that ``tests/test_architecture.py`` holds the imports to. Run from the root of
a checkout, after a change of them::

    python docs/images/architecture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_suffix(".png")
sys.path.insert(0, str(ROOT / "tests"))
from test_architecture import WINGS  # noqa: E402

# What each wing is for; of the verbs of Algorithm 1, their order and equations.
PURPOSE = {
    "_version": "the version",
    "errors": "errors and warnings",
    "validation": "checks of options",
    "schedules": "numbers that depend\non the step",
    "latents": "updates of latents\nthat users name",
    "data": "1. minibatch",
    "storage": "draws, traces,\ncheckpoints, ArviZ",
    "transitions": "3. weights: (3a), (3b)",
    "priors": "spike-and-slab priors\nand components",
    "model": "inspect a Pyro model",
    "adaptation": "4. latents: (4) to (8)",
    "pruning": "5. zeros: (9), (10)",
    "tuning": "settings chosen\nin warm-up",
    "posterior": "2. gradient of Q: (2)",
    "kernel": "Algorithm 1\nfor one chain",
    "testing": "checks of samplers,\nmodels and updates",
    "mcmc": "runs of many chains,\nresuming",
    "nn": "networks and\npredictions",
    "backend": "names in Pyro\nand pyroapi",
    "diagnostics": "verdicts on a run",
}
STEP, CORE, REST = "#f6c9a8", "#bcd4ee", "#ececec"
COLOURS = {name: STEP for name in ("data", "posterior", "transitions", "adaptation", "pruning")}
COLOURS |= {name: CORE for name in ("kernel", "model", "mcmc", "storage")}
LABELS = {
    STEP: "the verbs of Algorithm 1, in the order of a step, with their equations",
    CORE: "what carries them out: inspection, one chain, many chains, storage",
    REST: "what users combine with them, and the foundation",
}
WIDTH, HEIGHT, GAP = 2.3, 0.86, 0.3


def draw() -> plt.Figure:
    """Return the figure: a row of boxes for each level, the foundation at the bottom."""
    columns = max(map(len, WINGS))
    figure, axes = plt.subplots(figsize=(11, 10))
    for level, wings in enumerate(WINGS):
        order = sorted(wings, key=list(PURPOSE).index)
        left = (columns - len(order)) / 2
        for place, name in enumerate(order):
            x, y = (left + place) * (WIDTH + GAP), level * (HEIGHT + GAP)
            box = FancyBboxPatch(
                (x, y),
                WIDTH,
                HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=COLOURS.get(name, REST),
                edgecolor="#444444",
            )
            axes.add_patch(box)
            axes.text(
                x + WIDTH / 2, y + HEIGHT - 0.2, name, ha="center", va="center", weight="bold"
            )
            axes.text(x + WIDTH / 2, y + 0.32, PURPOSE[name], ha="center", va="center", fontsize=9)
        axes.text(
            -0.25, level * (HEIGHT + GAP) + HEIGHT / 2, str(level), va="center", color="#777777"
        )
    top = len(WINGS) * (HEIGHT + GAP)
    arrow = {"arrowstyle": "-|>", "color": "#777777"}
    axes.annotate("", xy=(-0.6, 0), xytext=(-0.6, top - GAP), arrowprops=arrow)
    axes.text(-0.85, top / 2, "may import", rotation=90, ha="center", va="center", color="#777777")
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=colour) for colour in LABELS]
    axes.legend(
        handles, LABELS.values(), loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False
    )
    axes.set(xlim=(-1, columns * (WIDTH + GAP)), ylim=(-0.1, top))
    axes.axis("off")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE, dpi=110, metadata={"Levels": str([sorted(wings) for wings in WINGS])})
