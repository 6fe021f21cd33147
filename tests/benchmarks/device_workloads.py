# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The workloads of :mod:`.workloads` on a device, for any batch size. All data are there, and every
model picks the rows of its batch by a plate's indices; priors' parameters are tensors that are made
once, for a number would be copied to the device, and waited for, at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_aeb as aeb
from pyro_aeb.kernel import algorithm

from .workloads import (
    FIRST,
    FIRST_STEPS,
    SIZES,
    Linear,
    N,
    P,
    Priors,
    Step,
    Workload,
    categorical,
    gaussian,
    kernel_of,
    mlp,
    networks,
)


class DeviceWorkload(Workload):
    """A workload whose chains can step together."""

    def together(self, chains: int) -> Step:
        """One step a call of several chains."""
        transition = self.transition or aeb.SGHMC(self.step_size)
        kernel = kernel_of(self.model, transition, save=["sigma2"], seed=0)
        kernel.start(0, range(chains), self.arguments, {})
        return lambda: algorithm.step(kernel, kernel.chain)


def first(batch: int | None, device: torch.device) -> DeviceWorkload:
    """The quickstart's program, p = 20, n = 100."""
    own = {"transition": FIRST_STEPS, "friction": 1.0, "step_size": 1e-4}
    return _linear("F", FIRST, batch, device, **own)


def linear(batch: int | None, device: torch.device) -> DeviceWorkload:
    """Sparse regression, p = 1000, n = 100."""
    return _linear("L", P, batch, device, step_size=1e-6)


def _linear(
    name: str, features: int, batch: int | None, device: torch.device, **own: Any
) -> DeviceWorkload:
    X = torch.randn(N, features, device=device)
    y = 3.0 * X[:, 0] + torch.randn(N, device=device)
    half, one, p = (torch.full((), v, device=device) for v in (0.5, 1.0, float(features)))
    scale, share = dist.InverseGamma(half, half), dist.Beta(one, p)

    def model(X: Tensor, y: Tensor, batch_size: int | None = None) -> None:
        sigma2, delta = pyro.sample("sigma2", scale), pyro.sample("delta", share)
        with pyro.plate("features", features):
            beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta=delta, sigma=sigma2.sqrt()))
        with pyro.plate("data", N, subsample_size=batch_size) as i:
            pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])

    return DeviceWorkload(
        name=name,
        network=Linear(features).to(device),
        x=X,
        y=y,
        rows=None if batch is None else torch.arange(batch, device=device),
        data=N,
        log_likelihood=gaussian,
        sparse=("beta",),
        model=model,
        arguments=(X, y, batch),
        one_batch=(X, y, batch),
        priors=Priors(0.1, 10.0, 1.0, float(features), 1.0, 1.0),
        **own,
    )


def dense_network(batch: int | None, device: torch.device) -> DeviceWorkload:
    """The MLP."""
    data = 10_000
    x = torch.randn(data, 784, device=device)
    y = torch.randint(10, (data,), device=device)
    layers: list[nn.Module] = []
    for inputs, outputs in SIZES.values():
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    network = nn.Sequential(*layers[:-1]).to(device)
    many, counts = (torch.full((), v, device=device) for v in (500.0, 1e5))
    scale, share = dist.InverseGamma(many, many), dist.Beta(counts, counts)
    zero, spread = torch.zeros((), device=device), torch.full((), 0.2, device=device)
    normal = {n: dist.Normal(zero, spread).expand([size]).to_event(1) for _, n, size in _sizes()}

    def model(x: Tensor, y: Tensor, batch_size: int) -> None:
        sigma2 = pyro.sample("sigma2", scale)
        weights, biases = [], []
        for name, (inputs, outputs) in SIZES.items():
            delta = pyro.sample(f"delta {name}", share)
            prior = aeb.SSGL(0.1, 1e-3, delta=delta, sigma=sigma2.sqrt())
            prior = prior.expand([outputs, inputs]).to_event(2)
            weights.append(pyro.sample(f"weight {name}", prior))
            biases.append(pyro.sample(f"bias {name}", normal[name]))
        with pyro.plate("data", data, subsample_size=batch_size) as i:
            logits = mlp(x[i], weights, biases)
            pyro.sample("y", dist.Categorical(logits=logits), obs=y[i])

    return DeviceWorkload(
        name="M",
        network=network,
        x=x,
        y=y,
        rows=torch.arange(data, device=device)[:batch],
        data=data,
        log_likelihood=categorical,
        sparse=tuple(name for name, _ in network.named_parameters() if name.endswith("weight")),
        model=model,
        arguments=(x, y, batch),
        one_batch=(x, y, batch),
        step_size=1e-9,
    )


def _sizes() -> list[tuple[int, str, int]]:
    return [(inputs, name, outputs) for name, (inputs, outputs) in SIZES.items()]


def _images(
    name: str,
    network: nn.Module,
    sparse: str,
    image: tuple[int, int, int],
    priors: Priors,
    batch: int | None,
    device: torch.device,
) -> DeviceWorkload:
    data = max(10 * (batch or 1), 100)
    network = network.to(device)
    x = torch.randn(data, *image, device=device)
    y = torch.randint(10, (data,), device=device)
    net = aeb.nn.bayesianize(
        network,
        sparse=sparse,
        v0=priors.v0,
        v1=priors.v1,
        delta=dist.Beta(priors.a, priors.b),
        sigma2=dist.InverseGamma(0.5 * priors.nu, 0.5 * priors.nu_lambda),
        dense_scale=priors.dense_scale,
    )

    def model(x: Tensor, y: Tensor, batch_size: int) -> None:
        plate = pyro.plate("data", data, subsample_size=batch_size)
        with plate as i:
            images, labels = x[i], y[i]
        logits = net(images)
        with plate:
            pyro.sample("y", dist.Categorical(logits=logits), obs=labels)

    return DeviceWorkload(
        name=name,
        network=network,
        x=x,
        y=y,
        rows=torch.arange(data, device=device)[:batch],
        data=data,
        log_likelihood=categorical,
        sparse=net.sparse_sites,
        model=model,
        arguments=(x, y, batch),
        one_batch=(x, y, batch),
        step_size=1e-9,
        priors=priors,
    )


def convolutional(batch: int | None, device: torch.device) -> DeviceWorkload:
    """The first network of the MNIST experiments."""
    priors = Priors(v0=1.0, v1=0.1, a=6.3e5, b=6.3e5, nu=1000.0, nu_lambda=1e6)
    return _images("C", networks.Net1(), "fc1", (1, 28, 28), priors, batch, device)


def resnet(batch: int | None, device: torch.device) -> DeviceWorkload:
    """A ResNet20."""
    priors = Priors(v0=0.005, v1=1e-5, a=2.7e5, b=2.7e5, nu=1000.0, nu_lambda=1e6)
    return _images("R", networks.resnet20(), "*.conv*", (3, 32, 32), priors, batch, device)


MODELS: dict[str, Callable[[int | None, torch.device], Any]] = {
    "F": first,
    "L": linear,
    "M": dense_network,
    "C": convolutional,
    "R": resnet,
}
