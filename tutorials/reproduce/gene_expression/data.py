# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The sets of genes, and the folds of each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sparse_linear.data import Array

FOLDS, SHUFFLES = 5, 2


class GeneSet(NamedTuple):
    """
    A set as it is known before it is read.

    :param int classes: number of classes; 0 where y is a number.
    :param limits: intensities are clipped to these and their log10 is taken; None where x are logs
        already.
    """

    classes: int
    limits: tuple[float, float] | None


SETS = {
    "riboflavin": GeneSet(0, None),  # logs of expression
    "alon": GeneSet(2, (100.0, 16000.0)),  # colon, intensities
    "golub": GeneSet(2, (100.0, 16000.0)),  # leukemia, intensities
    "singh": GeneSet(2, (10.0, 16000.0)),  # prostate, intensities, of which half are below 10
    "shipp": GeneSet(2, (20.0, 16000.0)),  # lymphoma, intensities
    "gravier": GeneSet(2, None),  # breast, log ratios
    "khan": GeneSet(4, None),  # SRBCT, log ratios
}
"""Sets by the names of their files. Limits are those in use for the microarrays of each."""


class Split(NamedTuple):
    """
    A fold: features and targets to learn from and to test on.

    :param y: numbers, or the numbers of classes, which are in alphabetical order.
    :param columns: positions of the features in the file.
    """

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    columns: np.ndarray


def fold(name: str, number: int, data_dir: Path, genes: int) -> Split:
    """The genes of greatest variance in the training rows of a fold, standardised by these rows."""
    stored = np.load(data_dir / f"{name}.npz")
    x, y = stored["x"].astype(float), stored["y"]
    classes, limits = SETS[name]
    if limits is not None:
        x = np.log10(np.clip(x, *limits))
    if classes:
        found, y = np.unique(y, return_inverse=True)
        if len(found) != classes:
            raise ValueError(f"{name}.npz has {len(found)} classes in y, expected {classes}")
    order = np.random.default_rng(number // FOLDS).permutation(len(y))
    test = np.array_split(order, FOLDS)[number % FOLDS]
    train = np.setdiff1d(order, test)
    chosen = np.argsort(-x[train].var(0))[:genes]
    centre, scale = x[train][:, chosen].mean(0), x[train][:, chosen].std(0)
    standard, y = (x[:, chosen] - centre) / scale, y.astype(int if classes else float)
    return Split(standard[train], y[train], standard[test], y[test], chosen)
