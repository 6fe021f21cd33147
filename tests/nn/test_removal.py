# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Networks without their zero units, against the same networks with them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro_runs import make_kernel, make_pyro_mcmc
from torch import nn

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.nn import bayesianize, parameter_counts, remove_units, sparse_module

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def prune(layer, units, bias=None):
    with torch.no_grad():
        layer.weight[units] = 0.0
        if bias is not None:
            layer.bias[units] = bias
    return layer


def make_norm(size, kind=nn.BatchNorm2d):
    norm = kind(size)
    with torch.no_grad():
        for name in ("running_mean", "weight", "bias"):
            getattr(norm, name).normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = prune(nn.Linear(6, 5), [0, 3]), prune(nn.Linear(5, 4), [1])
        self.c = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.c(torch.tanh(self.b(F.leaky_relu(self.a(x), 0.2))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = prune(nn.Linear(6, 5), [0, 3]), prune(nn.Linear(5, 6), [1])
        self.c = nn.Linear(6, 2)

    def forward(self, x):
        return self.c(x + self.b(self.a(x).relu()))


def perceptron():
    first, second = prune(nn.Linear(6, 5), [1, 4]), prune(nn.Linear(5, 4, bias=False), [0])
    norm = make_norm(5, nn.BatchNorm1d)
    last = nn.Linear(4, 3, bias=False)
    return nn.Sequential(first, norm, nn.Sigmoid(), nn.Dropout(0.5), second, nn.SiLU(), last)


def convolutions():
    first = prune(nn.Conv2d(2, 6, 3), [0, 2])
    second = prune(nn.Conv2d(6, 4, 3), [3])
    between = [make_norm(6), nn.Tanh(), nn.MaxPool2d(2)]
    return nn.Sequential(first, *between, second, nn.GELU(), nn.Flatten(), nn.Linear(4, 3))


def flattened():
    first = prune(nn.Conv2d(2, 5, 3, padding=1), [1, 2])
    return nn.Sequential(first, nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(80, 3))


def padded():
    """Units of a constant other than zero stay, where the next layer pads with zeros."""
    first = prune(nn.Conv2d(2, 5, 3), [1, 2, 3], bias=torch.tensor([-1.0, 1.0, -2.0]))
    return nn.Sequential(first, nn.ReLU(inplace=True), nn.Conv2d(5, 2, 3, padding=1))


# A module, its inputs, and the numbers of its weights that stay.
CASES = {
    "functional": (Functional, X, [3 * 7, 3 * 3 + 3, 3 * 2 + 2]),
    "residual": (Residual, X, [3 * 7, 3 * 6 + 6, 14]),
    "perceptron": (perceptron, X, [3 * 7, 6, 3 * 3 + 3, 3 * 3]),
    "convolutions": (convolutions, IMAGES, [4 * 19, 8, 3 * 37, 12]),
    "flattened": (flattened, IMAGES, [3 * 19, 48 * 3 + 3]),
    "padded": (padded, IMAGES, [3 * 19, 2 * 28]),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_same_and_the_weights_fewer(case):
    torch.manual_seed(0)
    make, inputs, counts = CASES[case]
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    small = remove_units(module, inputs)
    assert type(small) is type(module) and small.training
    assert {n: v.shape for n, v in before.items()} == {
        n: v.shape for n, v in module.state_dict().items()
    }
    torch.testing.assert_close(small.eval()(inputs), module.eval()(inputs), rtol=1e-4, atol=1e-5)
    found = [layer.total for layer in parameter_counts(small).layers]
    if case in ("functional", "perceptron"):  # a constant needs a bias in the next layer
        assert small.get_submodule("c" if case == "functional" else "4").bias is not None
    assert found == counts


def test_after_unit_pruning_the_network_is_smaller():
    torch.manual_seed(0)
    net = bayesianize(
        nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)), "0", delta=0.5, sigma2=1.0
    )

    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    pruning = aeb.UnitPruning(0.5, sites="0.weight")
    mcmc = make_pyro_mcmc(make_kernel(model, 1e-3, pruning=pruning))
    mcmc.run(X, X[:, 0])
    module = sparse_module(net, mcmc)
    small = remove_units(module, X)
    zeros = int((~module[0].weight.any(1)).sum())
    assert zeros > 5 and small[0].out_features == small[2].in_features == 20 - zeros
    torch.testing.assert_close(small(X), module(X), rtol=1e-4, atol=1e-5)
    assert remove_units(small, X)[0].out_features == 20 - zeros


def test_a_layer_of_zeros_keeps_one_unit():
    module = nn.Sequential(prune(nn.Linear(6, 3), [0, 1, 2]), nn.Tanh(), nn.Linear(3, 2))
    small = remove_units(module, X)
    assert small[0].out_features == 1
    torch.testing.assert_close(small(X), module(X))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = prune(nn.Linear(6, 5), [0]), nn.Linear(5, 5)

    def forward(self, x):
        return self.b(self.a(x).softmax(-1))


class Branching(Normalised):
    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = prune(nn.Linear(6, 6), [0]), nn.Linear(6, 5)

    def forward(self, x):
        return self.b(self.a(self.a(x)))


class Sized(Normalised):
    def forward(self, x):
        return self.b(self.a(x).relu()) * self.a.out_features


def tied():
    module = nn.Sequential(prune(nn.Linear(6, 6), [0]), nn.ReLU(), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    return module


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Normalised, r"no unit.*a \(its outputs go to softmax"),
        (Branching, "cannot be traced.*depend on the data"),
        (Twice, "a is used more than once"),
        (Sized, "other outputs.*sizes of its layers"),
        (tied, "shares weights with another layer"),
        (lambda: prune(nn.Linear(6, 2), [0]), "no unit.*are the module's"),
    ],
)
def test_what_cannot_be_done_is_refused(make, words):
    with pytest.raises(ModelError, match=words):
        remove_units(make() if not isinstance(make(), nn.Linear) else nn.Sequential(make()), X)
