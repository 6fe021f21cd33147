# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Data, DataLoaders and their batches."""

from __future__ import annotations

import torch
from models import N, linear_data
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_aeb.data.loaders import LoaderArguments

X, Y = linear_data()
DATA = TensorDataset(X, Y)
BATCHES = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)]
"""All data, in batches of five."""


def first_batches(loader: DataLoader, count: int, **options) -> list:
    """Return the first batches, as arguments of a model."""
    source = LoaderArguments(loader, {}, **{"seed": None, **options})
    return [source.next() for _ in range(count)]


def shuffling_loader(batch_size: int = 6, **options) -> DataLoader:
    return DataLoader(DATA, batch_size, shuffle=True, **options)


def collate_unchanged(batch):
    """Collate a batch to itself."""
    return batch


def collate_batches(items):
    """Collate items that are batches, by concatenation."""
    return tuple(torch.cat(parts) for parts in zip(*items, strict=True))


class Once(IterableDataset):
    """Data that can be read once."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows
