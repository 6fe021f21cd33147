# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a chain holds in memory.

    python -m pytest tests/benchmarks/test_memory.py -s
"""

from __future__ import annotations

import resource
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_aeb as aeb

from . import memory
from .workloads import dense_network

BYTES = 20.0
"""The most a sparse weight may take beyond the weight itself."""

STEPS, STEPS_PER_DRAW = 100_000, 1000
TENSOR = 64
"""Bytes of the smallest storage that torch allocates."""


@pytest.mark.parametrize("pruning", [None, aeb.MagnitudePruning(0.9)], ids=["dense", "pruned"])
def test_a_chain_steps_on_few_numbers_a_weight(pruning):
    """What it records of its draws is printed only: how much that is, ``save`` says."""
    workload = dense_network()
    kernel = workload.kernel(pruning=pruning)
    kernel.sample(kernel.initial_params)
    chain = kernel.chain
    everything = list(memory.tensors(chain))
    records = list(memory.tensors([chain.moments, chain.history, chain.last_draw]))
    network = 4 * sum(p.numel() for p in workload.network.parameters())
    sparse = sum(p.numel() for n, p in workload.network.named_parameters() if n in workload.sparse)
    step = (memory.bytes_of(everything, but=[workload.x, workload.y, *records]) - network) / sparse
    record = memory.bytes_of(records) / sparse
    print(
        f"\nM: {step:.2f} bytes a sparse weight beyond the weight itself, {record:.2f} in records"
    )
    assert step <= BYTES


def test_memory_counts_a_storage_once_and_finds_what_closures_hold():
    x, y = torch.zeros(10), torch.zeros(100)
    held = memory.tensors({"views": [x[:3], x[3:]], "closure": lambda: y})
    assert memory.bytes_of(held) == 4 * 110
    assert memory.bytes_of([x, y], but=[y[1:]]) == 40


def model(x, y):
    """A small model, in batches, with a learned sigma."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 2.0))
    prior = aeb.SSGL(0.1, 10.0, delta=0.5, sigma=sigma2.sqrt())
    beta = pyro.sample("beta", prior.expand([2]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=5) as i:
        pyro.sample("y", dist.Normal(x[i] @ beta, sigma2.sqrt()), obs=y[i])


def peak() -> int:
    """The most bytes of memory that this process has had."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_mcmc")
def test_memory_is_bounded_over_many_steps():
    """Less grows in 90,000 steps than the smallest tensor a step would."""
    x, y = torch.randn(10, 2), torch.randn(10)
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(1e-4),
        aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7)),
        steps_per_draw=STEPS_PER_DRAW,
    )
    kernel.setup(0, x, y)
    draws, warm = STEPS // STEPS_PER_DRAW, STEPS // STEPS_PER_DRAW // 10
    params = kernel.initial_params
    for draw in range(draws):
        if draw == warm:
            before = peak()
        params = kernel.sample(params)
    assert kernel.chain.step == STEPS
    assert peak() - before <= TENSOR * (draws - warm) * STEPS_PER_DRAW
