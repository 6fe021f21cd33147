# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Run the quickstart's program and draw its answer, for the README.

Run from the root of a checkout::

    python docs/images/first_answer.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from pyro.infer import Predictive

import pyro_aeb as aeb

README = Path(__file__).resolve().parents[2] / "README.md"
PICTURE = Path(__file__).with_suffix(".png")
ROWS = 12
BLUE, GREY = "#1f77b4", "#b0b0b0"


def run_program() -> dict[str, Any]:
    text = README.read_text(encoding="utf-8")
    (program,) = re.findall(r"^<!-- first-answer -->\n```python\n(.*?)^```$", text, re.M | re.S)
    names: dict[str, Any] = {"__name__": "first_answer"}
    exec(compile(program, "README.md", "exec"), names)
    return names


def draw(names: dict[str, Any]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    probability = aeb.inclusion(names["mcmc"])["beta"].probability
    features = range(len(probability))
    left.bar(features, probability, color=[BLUE if p > 0.5 else GREY for p in probability])
    left.axhline(0.5, color="black", lw=0.8, ls=":")
    left.set(title="Which features matter?", xlabel="feature", xticks=[0, 1, 2, 5, 10, 15, 19])
    left.set_ylabel("probability that it is in")

    torch.manual_seed(1)  # rows that the program has not seen
    X = torch.randn(ROWS, names["X"].shape[1])
    y = X[:, :3] @ torch.tensor([3.0, 2.0, 1.0]) + torch.randn(ROWS)
    drawn = Predictive(names["model"], names["mcmc"].get_samples())(X)["y"]
    low, middle, high = drawn.quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
    rows = range(1, ROWS + 1)
    right.vlines(rows, low, high, color=BLUE, lw=7, alpha=0.35, label="predicted, 90 %")
    right.plot(rows, middle, "_", color=BLUE, ms=9, mew=2)
    right.plot(rows, y, "o", color="black", ms=4.5, label="what came")
    right.set(title="What comes next?", xlabel="new row", ylabel="y", xticks=[1, 4, 8, 12])
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    draw(run_program())
