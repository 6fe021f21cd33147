# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Models, draws of their weights, and data to predict."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.utils.data import DataLoader, TensorDataset

INPUTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0], [0.5, 3.0]])
LABELS = torch.tensor([0, 2, 1, 0, 2])
WEIGHTS = torch.tensor(
    [
        [[4.0, 0.0, -1.0], [0.0, 1.0, 3.0]],
        [[-1.0, 2.0, 0.0], [0.5, 0.0, 1.0]],
        [[1.0, 1.0, -2.0], [-3.0, 0.0, 2.0]],
    ]
)
"""Weights of three draws, two features and three classes."""

SLOPES = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
VARIANCES = torch.tensor([0.5, 2.0])
VALUES = torch.tensor([2.0, 0.0, 3.0, 1.0, -1.0])


def classifier(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", 1000, subsample=x):  # every datum counts 200 times in training
        return pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 2.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, sigma2.sqrt()), obs=y)


def make_loader(*tensors, batch_size=2) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size)
