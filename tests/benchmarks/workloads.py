# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the benchmarks time: a step of the kernel beside its model's forward and backward pass alone.

"Alone" is the same arithmetic on the same minibatch in plain torch: no Pyro, no prior, no noise, no
latents and no update of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_aeb as aeb

SIZES = {"784-400": (784, 400), "400-400": (400, 400), "400-10": (400, 10)}
"""The layers of an MLP of 477,600 sparse weights."""


class Workload(NamedTuple):
    """
    :param step: one step of the kernel.
    :param alone: forward and backward of its model alone.
    """

    step: Callable[[], object]
    alone: Callable[[], object]


def linear_model(X: Tensor, y: Tensor, batch_size: int | None) -> None:
    """Sparse regression with a learned sigma squared and delta."""
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def mlp_model(x: Tensor, y: Tensor, batch_size: int) -> None:
    """A sparse classifier: a delta for every layer, one sigma, dense biases."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(500.0, 500.0))
    weights, biases = [], []
    for name, (inputs, outputs) in SIZES.items():
        delta = pyro.sample(f"delta {name}", dist.Beta(1e5, 1e5))
        prior = aeb.SSGL(0.1, 1e-3, delta=delta, sigma=sigma2.sqrt())
        weights.append(pyro.sample(f"weight {name}", prior.expand([outputs, inputs]).to_event(2)))
        prior = dist.Normal(0.0, 0.2).expand([outputs]).to_event(1)
        biases.append(pyro.sample(f"bias {name}", prior))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        logits = mlp(x[i], weights, biases)
        pyro.sample("y", dist.Categorical(logits=logits), obs=y[i])


def mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Logits of a ReLU network."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(torch.nn.functional.linear(x, weight, bias))
    return torch.nn.functional.linear(x, weights[-1], biases[-1])


def started(kernel: aeb.AEBKernel, *args: object) -> Callable[[], object]:
    """One step a call of a kernel that has started."""
    kernel.setup(0, *args)
    params = kernel.initial_params
    assert kernel.steps_per_draw == 1 and params is not None
    return lambda: kernel._step(kernel.chain)


def kernel_of(model: Callable[..., object], step_size: float) -> aeb.AEBKernel:
    """SGHMC-SA with all latents learned."""
    weight = aeb.Polynomial(10.0, 1000.0, 0.7)
    adaptation = aeb.StochasticApproximation(weight)
    return aeb.AEBKernel(model, aeb.SGHMC(step_size), adaptation)


def linear(batch_size: int | None) -> Workload:
    """Sparse regression with p = 1000 and n = 100."""
    n, p = 100, 1000
    X = torch.randn(n, p)
    y = 3.0 * X[:, 0] + torch.randn(n)
    step = started(kernel_of(linear_model, 1e-6), X, y, batch_size)
    beta, sigma = torch.zeros(p, requires_grad=True), torch.ones(())
    i = torch.randperm(n)[:batch_size]
    scale = n / len(i)

    def alone() -> object:
        z = (y[i] - X[i] @ beta) / sigma
        return torch.autograd.grad(torch.dot(z, z) * (-0.5 * scale), beta)

    return Workload(step, alone)


def network(batch_size: int = 100) -> Workload:
    """An MLP of 478k weights on 10,000 data."""
    size = 10_000
    x, y = torch.randn(size, 784), torch.randint(10, (size,))
    step = started(kernel_of(mlp_model, 1e-9), x, y, batch_size)
    weights = [torch.randn(o, i).mul_(0.05).requires_grad_() for i, o in SIZES.values()]
    biases = [torch.zeros(o, requires_grad=True) for _, o in SIZES.values()]
    i = torch.randperm(size)[:batch_size]

    def alone() -> object:
        logits = mlp(x[i], weights, biases)
        loss = torch.nn.functional.cross_entropy(logits, y[i], reduction="sum")
        return torch.autograd.grad(loss * (size / batch_size), weights + biases)

    return Workload(step, alone)
