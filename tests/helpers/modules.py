# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Small networks of six kinds, and models with them, at the top level of a module, so that spawned
processes can import them.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_aeb as aeb

CLASSES = 3


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def torchvision_network() -> nn.Module:
    shufflenet = pytest.importorskip("torchvision.models.shufflenetv2")
    return shufflenet.ShuffleNetV2([2, 1, 1], [4, 8, 8, 8, 16], num_classes=CLASSES)


class Tied(nn.Module):
    """One block used twice, and a last weight that is tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(CLASSES, CLASSES), nn.Tanh())
        self.first = nn.Linear(4, CLASSES)
        self.blocks = nn.ModuleList([block, block])
        self.last = nn.Linear(4, CLASSES)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for block in self.blocks:
            h = h + block(h)
        return h + self.last(x)


class Convolutions(nn.Module):
    """A convolution with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu_(self.norm(self.conv(x))))
        return self.last(h.flatten(1))


class Transformer(nn.Module):
    """Embedding, learned positional encoding, multi-head attention and layer normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.position = nn.Parameter(0.1 * torch.randn(5, 4))
        self.block = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.block(self.embedding(tokens) + self.position).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.gru = nn.GRU(3, 4, batch_first=True, bidirectional=True)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(x)
        return self.last(self.gru(h)[0][:, -1])


# A network with three logits, and a generator of n inputs.
KINDS = {
    "perceptron": (perceptron, lambda n: torch.randn(n, 4)),
    "torchvision": (torchvision_network, lambda n: torch.randn(n, 3, 32, 32)),
    "tied": (Tied, lambda n: torch.randn(n, 4)),
    "convolutions": (Convolutions, lambda n: torch.randn(n, 1, 4, 4)),
    "transformer": (Transformer, lambda n: torch.randint(0, 6, (n, 5))),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 4, 2)),
}


def make_bayesian(module: nn.Module, sparse=None, **options) -> aeb.nn.BayesianModule:
    priors = {"delta": dist.Beta(2.0, 3.0), "sigma2": dist.InverseGamma(1.5, 2.0), **options}
    return aeb.nn.bayesianize(module, sparse, **priors)


class Classifier:
    """A model of labels given inputs, by any network."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor, y: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        data = pyro.plate("data", len(x), subsample_size=batch_size)
        logits = self.net(x[data.indices])
        with data as i:
            obs = None if y is None else y[i]
            return pyro.sample("y", dist.Categorical(logits=logits), obs=obs)


def _layer_prior(layer: PyroModule) -> dist.Distribution:
    prior = aeb.SSGL(v0=0.1, v1=10.0, delta=layer.delta, sigma=layer.sigma2.sqrt())
    return prior.expand([layer.out_features, layer.in_features]).to_event(2)


class HandWritten(PyroModule):
    """A network as in Pyro's tutorials, with SSGL priors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self._layer(4, 5)
        self.last = self._layer(5, CLASSES)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> PyroModule:
        layer = PyroModule[nn.Linear](inputs, outputs)
        layer.sigma2 = PyroSample(dist.InverseGamma(1.5, 2.0))
        layer.delta = PyroSample(dist.Beta(2.0, 3.0))
        layer.weight = PyroSample(_layer_prior)
        layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))
