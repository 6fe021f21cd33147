# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Modules that keep activations, computed weights, masks and caches: sampled and exported."""

from __future__ import annotations

import copy
from multiprocessing.reduction import ForkingPickler

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_runs import make_kernel, make_pyro_mcmc
from torch import nn
from torch.nn.utils import prune

import pyro_aeb as aeb
from pyro_aeb import ModelError
from pyro_aeb.nn import bayesianize, parameter_counts, sparse_module

INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
VALUES = torch.randn(8, generator=torch.Generator().manual_seed(2))


class Keeps(nn.Module):
    """Keeps activations, in containers too, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.kept = nn.Linear(3, 4), nn.Linear(4, 1), {"last": []}
        self.features, self.calls = None, 0

    def forward(self, x):
        self.features, self.calls = torch.tanh(self.a(x)), self.calls + 1
        self.kept["last"] = [(self.features, self.features.sum())]
        return self.b(self.features)


class Empty(nn.Module):
    """Has a parameter without numbers, and one that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.none = nn.Linear(3, 1, bias=False), nn.Parameter(torch.zeros(0, 3))
        self.register_parameter("bias", None)

    def forward(self, x):
        return self.first(x) + (x @ self.none.T).sum(-1, keepdim=True)


class Caches(nn.Module):
    """Has a cache by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.ones = nn.Linear(3, 1), {}

    def forward(self, x):
        return self.first(x * self.ones.setdefault(x.shape, torch.ones_like(x)))


class Recurrent(nn.Module):
    """Keeps its state, a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last, self.state = nn.GRU(3, 2), nn.Linear(2, 1), ()

    def forward(self, x):
        out, *self.state = self.cells(x[None])
        return self.last(out[0])


def make_pruned():
    layer = nn.Linear(3, 1)
    prune.l1_unstructured(layer, "weight", amount=1)
    return nn.Sequential(layer)


def make_weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 1)))


def make_model(net):
    def model(x, y=None):
        mean = net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


def run_network(net):
    mcmc = make_pyro_mcmc(make_kernel(make_model(net), 1e-3, adaptation=None))
    mcmc.run(INPUTS, VALUES)
    return mcmc


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [Keeps, Empty, Caches, Recurrent, make_pruned, make_weight_norm])
@pytest.mark.parametrize("is_called", [False, True])
def test_they_are_copied_sampled_and_exported(make, is_called):
    torch.manual_seed(0)
    module = make()
    if is_called:
        module(INPUTS)
    net = bayesianize(module, sparse=[], delta=0.5, sigma2=1.0)
    mcmc = run_network(net)
    draws = mcmc.get_samples()
    for draw in (0, -1):
        found = sparse_module(net, mcmc, draw=draw)
        values = {name: draws[name][draw] for name in net.dense_sites}
        expected = torch.func.functional_call(net.module, values, (INPUTS,))
        torch.testing.assert_close(found(INPUTS), expected)
    parameter_counts(found), repr(net)
    again = copy.deepcopy(net)
    ForkingPickler.dumps(again), ForkingPickler.dumps(net)
    assert again.dense_sites == bayesianize(net.module, [], delta=0.5, sigma2=1.0).dense_sites


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [Keeps, make_pruned, make_weight_norm])
def test_results_of_chains_that_step_together_are_no_obstacle(make):
    torch.manual_seed(0)
    net = bayesianize(make(), sparse=[], delta=0.5, sigma2=1.0)
    kernel = make_kernel(make_model(net), 1e-3, adaptation=None)
    mcmc = aeb.MCMC(kernel, 2, 1, num_chains=2, chain_method="vectorized")
    mcmc.run(INPUTS, VALUES)
    found = sparse_module(net, mcmc, draw=0)
    values = {name: mcmc.get_samples()[name][0] for name in net.dense_sites}
    expected = torch.func.functional_call(net.module, values, (INPUTS,))
    torch.testing.assert_close(found(INPUTS), expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [make_pruned, make_weight_norm])
def test_computed_weights_are_the_draws_before_any_call(make):
    torch.manual_seed(0)
    net = bayesianize(make(), sparse=[], delta=0.5, sigma2=1.0)
    mcmc = run_network(net)
    draw = {name.rpartition(".")[2]: value[0] for name, value in mcmc.get_samples().items()}
    if "weight_orig" in draw:
        expected = draw["weight_orig"] * net.module[0].weight_mask
    else:
        expected = draw["weight_v"] / draw["weight_v"].norm() * draw["weight_g"]
    exported = sparse_module(net, mcmc, draw=0)
    torch.testing.assert_close(exported[0].weight, expected)
    copy.deepcopy(exported)


def test_what_cannot_be_copied_is_said():
    module = nn.Sequential(nn.Linear(3, 1))
    module.stream = (i for i in range(3))
    with pytest.raises(ModelError, match="cannot be copied.*generator"):
        bayesianize(module, delta=0.5, sigma2=1.0)
