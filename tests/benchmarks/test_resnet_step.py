# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step of a ResNet20 costs with pruning on, as a multiple of forward + backward alone.

    python -m pytest tests/benchmarks/test_resnet_step.py --benchmark-enable -s

SGHMC-SA on batches of 128 images from a DataLoader, 90 % of the weights pruned at every step, in
single precision on the CPU. Both are timed in turn, one call each, and the ratio is taken turn by
turn; its median and quartiles are printed. Time a quiet machine.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb

from .test_step import as_in_mcmc, seconds  # noqa: F401
from .workloads import Workload, started

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("the network is of a tutorial that needs torchvision", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorials" / "reproduce"))
networks = importlib.import_module("vision.networks")

TURNS = 20
BATCH, DATA = 128, 1280
BOUND = 1.15
"""The most that a step may cost."""


class Batches(TensorDataset):
    """Images of which a loader fetches a whole batch at once."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(tensor[torch.tensor(indices)] for tensor in self.tensors)


def whole(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The collation of :class:`Batches`."""
    return batch


def resnet() -> Workload:
    """A ResNet20, 267,264 of whose 272,474 weights are sparse."""
    network = networks.resnet20()
    x, y = torch.randn(DATA, 3, 32, 32), torch.randint(10, (DATA,))
    net = aeb.nn.bayesianize(
        network,
        sparse="*.conv*",
        v0=0.005,
        v1=1e-5,
        delta=dist.Beta(2.7e5, 2.7e5),
        sigma2=dist.InverseGamma(500.0, 5e5),
        dense_scale=0.2,
    )

    def model(x: Tensor, y: Tensor) -> None:
        logits = net(x)
        with pyro.plate("data", DATA, subsample=x):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(1e-8),
        adaptation=aeb.StochasticApproximation(aeb.Polynomial(0.02, 1000.0, 0.75)),
        inverse_temperature=1000.0,
        pruning=aeb.MagnitudePruning(0.9),
        save=["sigma2"],
    )
    loader = DataLoader(Batches(x, y), batch_size=BATCH, shuffle=True, collate_fn=whole)
    parameters = list(network.parameters())
    x, y = x[:BATCH], y[:BATCH]

    def alone() -> object:
        loss = torch.nn.functional.cross_entropy(network(x), y, reduction="sum")
        return torch.autograd.grad(loss * (DATA / BATCH), parameters)

    return Workload(started(kernel, loader), alone)


def test_a_pruned_step_of_a_resnet_costs_little_more_than_forward_and_backward(benchmark):
    workload = resnet()
    benchmark.pedantic(workload.step, rounds=3, warmup_rounds=1)
    if benchmark.disabled:
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    seconds(workload.alone, 2)
    ratios = [seconds(workload.step, 1) / seconds(workload.alone, 1) for _ in range(TURNS)]
    low, median, high = statistics.quantiles(ratios, n=4)
    benchmark.extra_info["ratio"] = round(median, 3)
    print(f"\nResNet20: step / (forward + backward) = {median:.3f} [{low:.3f}, {high:.3f}]")
    assert median <= BOUND
