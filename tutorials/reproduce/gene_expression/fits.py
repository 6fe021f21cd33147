# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All methods by name, and their figures on a fold."""

from __future__ import annotations

import importlib.util
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit, softmax
from sparse_linear.data import Array

from . import horseshoe, spikes
from .class_references import fit_classes
from .data import SETS, Split, fold
from .linear_references import by_cross_validation, fit_linear, mcp_path
from .selections import add_selection

FIGURES = ("loss", "error", "coverage", "genes", "halves", "v0", "sigma", "seconds")
METHODS = ("ridge", "elastic net", "lasso", "relaxed lasso", "mcp", "horseshoe", "gibbs")
HAS_NUMPYRO = importlib.util.find_spec("numpyro") is not None


class Fit(NamedTuple):
    """
    :param figures: by name.
    :param selected: which features are selected; None for a method that selects none or all.
    """

    figures: dict[str, float]
    selected: Array | None = None


def methods_of(data: str) -> list[str]:
    """The methods that a set has: MCP is for numbers, the horseshoe for numbers and two classes."""
    classes = SETS[data].classes
    left_out = {"mcp"} if classes else set()
    if classes > 2 or not HAS_NUMPYRO:
        left_out.add("horseshoe")
    return [method for method in METHODS if method not in left_out]


def settings_of(name: str, genes: int, draws: int) -> str:
    """The text that tells the rows of one set of settings from those of another."""
    method = name.split("; ")[1]
    own = {
        "gibbs": f"; {spikes.CHAINS} chains, {draws} draws of {spikes.STEPS_PER_DRAW} steps",
        "horseshoe": f"; 1 chain, {draws} draws",
    }
    return f"{genes} genes{own.get(method, '')}"


def run_one(
    name: str, number: int, data_dir: Path, genes: int, draws: int, out: Path
) -> dict[str, float]:
    """The figures of one method on one fold; the genes that it selects are written down."""
    data, method = name.split("; ")
    split = fold(data, number, data_dir, genes)
    if method == "mcp":  # numba compiles at the first use: not part of the fit
        by_cross_validation(split.x[:, :3], split.y, mcp_path)
    clock = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "gibbs":
            fit = gibbs(SETS[data].classes, number, split, draws)
        elif method == "horseshoe":
            fit = by_horseshoe(SETS[data].classes, number, split, draws)
        else:
            fit = reference(SETS[data].classes, method, split)
    seconds = time.process_time() - clock
    if fit.selected is not None:
        add_selection(out, number, name, split.columns[fit.selected])
    return fit.figures | {"seconds": seconds}


def reference(classes: int, method: str, split: Split) -> Fit:
    """A penalised regression."""
    x, y, x_test, y_test, _ = split
    found, selected = (fit_classes if classes else fit_linear)(method, x, y, x_test)
    figures = class_figures(found, y_test) if classes else {"loss": squared_error(found, y_test)}
    figures["genes"] = float(selected.sum())
    return Fit(figures, None if method == "ridge" else selected)


def by_horseshoe(classes: int, number: int, split: Split, draws: int) -> Fit:
    """The horseshoe, which selects no genes."""
    mean, scale = units(classes, split.y)
    own = horseshoe.sample(split.x, (split.y - mean) / scale, not classes, draws, number)
    return Fit(predicted(own, split, classes, number))


def gibbs(classes: int, number: int, split: Split, draws: int) -> Fit:
    """Spikes and slabs; genes whose inclusion probability is above 1/2 are selected."""
    mean, scale = units(classes, split.y)
    own, gamma, inclusion = spikes.sample(split.x, (split.y - mean) / scale, classes, draws, number)
    if not classes:
        own["sigma"] = np.sqrt(own["sigma2"])
    any_class = gamma.any(-1)
    probability = any_class.mean((0, 1)) if classes else inclusion.mean(0)
    figures = {
        "genes": float(any_class.sum(-1).mean()),
        "halves": float(abs(inclusion[:2].mean(0) - inclusion[2:].mean(0)).max()),
        "v0": float(np.median(own["v0"])),
    }
    return Fit(figures | predicted(own, split, classes, number), probability > 0.5)


def units(classes: int, y: Array) -> tuple[float, float]:
    """The mean and the deviation by which a target is standardised; classes are not."""
    return (0, 1) if classes else (y.mean(), y.std())


def predicted(own: dict[str, Array], split: Split, classes: int, seed: int) -> dict[str, float]:
    """
    Figures of the posterior mean of the predictions, and of 90 % intervals.

    :param own: draws of ``beta``, ``intercept`` and, of numbers, ``sigma``, for a target that is
        standardised.
    """
    y_test = split.y_test
    means = np.einsum("np,sp...->sn...", split.x_test, own["beta"]) + own["intercept"][:, None]
    if classes > 2:
        return class_figures(softmax(means, -1).mean(0), y_test)
    if classes:
        chance = expit(means).mean(0)
        return class_figures(np.stack([1.0 - chance, chance], -1), y_test)
    mean, scale = units(classes, split.y)
    sigma = own["sigma"].reshape(-1, 1)
    noisy = means + sigma * np.random.default_rng(seed).standard_normal(means.shape)
    low, high = np.quantile(noisy, (0.05, 0.95), axis=0) * scale + mean
    return {
        "loss": squared_error(means.mean(0) * scale + mean, y_test),
        "coverage": float(((low <= y_test) & (y_test <= high)).mean()),
        "sigma": float(sigma.mean() * scale),
    }


def squared_error(found: Array, y: Array) -> float:
    """The mean squared error."""
    return float(((y - found) ** 2).mean())


def class_figures(chances: Array, y: Array) -> dict[str, float]:
    """Log loss and the share of errors, of the probabilities of the classes."""
    own = chances[np.arange(len(y)), y].clip(1e-12, 1.0)
    return {"loss": float(-np.log(own).mean()), "error": float((chances.argmax(-1) != y).mean())}
