# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The cost of updating a prior's latents, in passes over the weights: no prior takes more than SSGL
except a Student slab, whose penalty differs from weight to weight, and a penalty that a prior lacks
costs nothing. ``tests/kernel/test_update_cost.py`` limits the operations of SSGL's update to 70.
"""

import pytest
import torch
from prior_families import FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_aeb import StochasticApproximation
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.model.structure import Delta, Sigma, SparseBlock, Structure

SIZE = 1000


def make_rule(family, layers, group=1):
    names = [*family.prior(0.5, 1.0).shape_parameters]
    parameters = dict(zip(names, family.numbers, strict=True))
    blocks = tuple(
        SparseBlock(
            f"w{i}", torch.Size([SIZE]), prior=family.make, parameters=parameters, group=group
        )
        for i in range(layers)
    )
    return SpikeAndSlabRule(
        Structure(
            sparse=blocks,
            normal=(),
            general=(),
            sigmas=(Sigma("sigma2", nu=3.0, nu_lambda=2.0),),
            deltas=(Delta("delta", a=2.0, b=3.0),),
            observed=(),
            plates={},
            dims={},
            observations={},
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    )


class Passes(TorchDispatchMode):
    """Counts the operations that read or write all weights."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = {"aten::view", "aten::split_with_sizes", "aten::expand", "aten::unsqueeze"}
        tensors = [v for v in (*args, out) if isinstance(v, torch.Tensor)]
        if func.name().split(".")[0] not in views:
            self.count += any(v.numel() >= self.size for v in tensors)
        return out


def count_passes(family, layers=1, group=1):
    own = make_rule(family, layers, group)
    first = {"sigma2": torch.tensor(1.0), "delta": torch.tensor(0.3)}
    latents = own.init(first, StochasticApproximation(0.5))
    beta, gradient = torch.randn(2, layers * SIZE)
    with torch.no_grad(), Passes(layers * SIZE) as counted:
        own.add_gradient(gradient, latents, beta)
        own.update(latents, beta, {}, 0.5)
    return counted.count


@pytest.mark.parametrize("name", ["normal", "lasso", "SSGL, Gaussian spike", "one's own"])
def test_no_prior_takes_more_passes_than_ssgl(name):
    assert count_passes(FAMILIES[name]) <= count_passes(FAMILIES["SSGL"])


def test_a_penalty_that_there_is_not_costs_nothing():
    # Of K, SSGL has the product rho k, its product with beta twice, and its sum; and the gradient's
    # product rho k, division by sigma and product with K. A lasso has none of these, but a term
    # more in each of two L: its spike has a product, and its slab is added.
    assert count_passes(FAMILIES["lasso"]) < count_passes(FAMILIES["SSGL"])


@pytest.mark.parametrize("name", FAMILIES)
def test_passes_do_not_grow_with_the_layers(name):
    for group in (1, 10):
        assert count_passes(FAMILIES[name], 30, group) == count_passes(FAMILIES[name], 5, group)
