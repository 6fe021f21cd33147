# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The tables, and how they are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

Array = NDArray[np.float64]

#: The paper's seeds: the digits 5 to 9, each one to four times.
SEEDS = tuple(int(digit * times) for digit in "56789" for times in range(1, 5))

#: File name to title. The target is the last column.
TABLES = {
    "boston": "Boston",
    "yacht": "Yacht",
    "energy": "Energy",
    "wine": "Wine",
    "concrete": "Concrete",
    "power": "Power",
}

TEST_SHARE = 0.1


class Split(NamedTuple):
    """
    One split of a table.

    :param Tensor X: training inputs, standardised, shape (n, d).
    :param Tensor y: training targets as they are, shape (n,).
    :param Tensor X_test: test inputs, by the training inputs' mean and standard deviation.
    :param Tensor y_test: test targets.
    """

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def read_table(path: Path) -> tuple[Array, Array]:
    """
    Reads a CSV file with a header line, numbers only, the target in the last column.

    :returns: inputs of shape (rows, d), and targets of shape (rows,).
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it holds something else than numbers, or fewer than two columns.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, expected a CSV file with a header line and the target in its "
            "last column"
        )
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected numbers only below the header line") from None
    if table.shape[1] < 2:
        raise ValueError(f"{path} has {table.shape[1]} column, expected inputs and a target")
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise ValueError(f"{path} has a missing or infinite number in line {row + 2}")
    return table[:, :-1], table[:, -1]


def made_up_table(seed: int = 0, rows: int = 130, features: int = 4) -> tuple[Array, Array]:
    """A table for smoke runs: two features matter, one of them not linearly."""
    rng: Any = np.random.default_rng(seed)
    X = rng.normal(size=(rows, features))
    y = 3.0 + 2.0 * X[:, 0] + np.abs(X[:, 1]) + 0.3 * rng.normal(size=rows)
    return X, y


def split(X: Array, y: Array, seed: int) -> Split:
    """
    The paper's split: scikit-learn's ``train_test_split`` with ``random_state=seed``.

    :param X: inputs, shape (rows, d).
    :param y: targets, shape (rows,).
    :param int seed: of the split.
    """
    X, X_test, y, y_test = train_test_split(X, y, test_size=TEST_SHARE, random_state=seed)
    mean, scale = X.mean(0), X.std(0)
    scale = np.where(scale > 0.0, scale, 1.0)

    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(array).float()

    return Split(
        tensor((X - mean) / scale), tensor(y), tensor((X_test - mean) / scale), tensor(y_test)
    )
