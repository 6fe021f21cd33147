# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the benchmarks time: five models, each as a plain torch network on one batch and as a Pyro
model for :class:`pyro_aeb.AEBKernel`.

===  ====================================================================================
F    the quickstart's program: sparse regression, p = 20, n = 100, batches of 50, SGLD
L    sparse regression, p = 1000, n = 100, all rows at every step
M    an MLP 784-400-400-10, 478,410 weights, batches of 100
C    a network of two convolutions and two linear layers, 681,506 weights, batches of 100
R    a ResNet20, 272,474 weights, batches of 128
===  ====================================================================================

In F and M every sampler draws a batch at every step, the kernel by its plate's indices. In L all
rows are the batch, and nothing is drawn. In C and R the kernel gets a new batch at every step from
a shuffling DataLoader, and all else has one batch and keeps it. Forward and backward alone have one
batch everywhere.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.transitions import AnyTransition

REPRODUCE = Path(__file__).resolve().parents[2] / "tutorials" / "reproduce"
sys.path.insert(0, str(REPRODUCE))
networks = importlib.import_module("vision.networks")

TITLES = {
    "F": "the quickstart's program, p = 20, n = 100, batches of 50, SGLD",
    "L": "linear regression, p = 1000, n = 100",
    "M": "MLP 784–400–400–10, 478,410 weights, batches of 100",
    "C": "two convolutions and two linear layers, 681,506 weights, batches of 100",
    "R": "ResNet20, 272,474 weights, batches of 128",
}

FRICTION = 0.1

Step = Callable[[], object]
"""One step of something, or one forward and backward pass."""


@dataclass(frozen=True)
class Workload:
    """
    A model and its data.

    :param str name: F, L, M, C or R.
    :param network: in plain torch, with the weights as its parameters; gives means or logits.
    :param x: the data that samplers draw batches from; or one batch.
    :param y: as ``x``.
    :param rows: of the batch that forward and backward alone have, as many as a sampler draws; None
        where ``x`` and ``y`` are one batch.
    :param int data: N, what the batch stands for.
    :param log_likelihood: of the network's output and ``y``, summed over the batch.
    :param sparse: parameters of the network that have an SSGL prior.
    :param priors: of :func:`pyro_aeb.nn.bayesianize`; those of the Pyro model.
    :param model: a Pyro model.
    :param arguments: what ``MCMC.run`` is called with.
    :param one_batch: the model's arguments for one step.
    :param float step_size: one with which nothing diverges.
    :param transition: the kernel's, if not SGHMC of ``step_size``.
    :param float friction: of the other samplers; 1 for SGLD.
    """

    name: str
    network: nn.Module
    x: Tensor
    y: Tensor
    rows: Tensor | None
    data: int
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    sparse: tuple[str, ...]
    model: Callable[..., object]
    arguments: tuple[Any, ...]
    one_batch: tuple[Any, ...]
    step_size: float
    priors: Priors = field(default_factory=lambda: Priors())
    transition: AnyTransition | None = None
    friction: float = FRICTION

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """The batch that lies ready."""
        return (self.x, self.y) if self.rows is None else (self.x[self.rows], self.y[self.rows])

    @property
    def scale(self) -> float:
        """N / n."""
        return self.data / len(self.batch[1])

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Draw the batch of a step, with replacement; where there is only one, return it."""
        if self.rows is None:
            return self.batch
        rows = torch.randint(len(self.y), self.rows.shape, device=self.rows.device)
        return self.x[rows], self.y[rows]

    def alone(self) -> Step:
        """
        Forward and backward of the likelihood in plain torch, on a batch that lies ready: no Pyro,
        no prior, no noise, no latents and no update of the weights.
        """
        parameters, (x, y) = list(self.network.parameters()), self.batch

        def alone() -> object:
            total = self.log_likelihood(self.network(x), y) * self.scale
            return torch.autograd.grad(total, parameters)

        return alone

    def kernel(self, **options: Any) -> aeb.AEBKernel:
        """
        The adaptive kernel with all latents learned, started.

        :param options: of the kernel, such as ``pruning``.
        """
        transition = self.transition or aeb.SGHMC(self.step_size)
        kernel = kernel_of(self.model, transition, **{"save": ["sigma2"], **options})
        kernel.setup(0, *self.arguments)
        return kernel


def kernel_of(
    model: Callable[..., object], transition: AnyTransition, **options: Any
) -> aeb.AEBKernel:
    """An adaptive kernel with all latents learned."""
    adaptation = aeb.StochasticApproximation(aeb.Polynomial(10.0, 1000.0, 0.7))
    options = {"compile": compiled(False), **options}
    return aeb.AEBKernel(model, transition, adaptation, **options)


def compiled(whether: bool) -> bool:
    """The kernel's argument ``compile``."""
    return whether


@dataclass(frozen=True)
class Priors:
    """
    The numbers of an SSGL prior, a Beta(a, b) for delta, an InverseGamma(nu / 2, nu lambda / 2) for
    sigma squared, and a Normal for what is not sparse.
    """

    v0: float = 0.1
    v1: float = 1e-3
    a: float = 1e5
    b: float = 1e5
    nu: float = 1000.0
    nu_lambda: float = 1000.0
    dense_scale: float = 0.2


# -- F and L ---------------------------------------------------------------------------------------

FIRST, P, N, HALF = 20, 1000, 100, 50
"""The features of F and of L, the rows of both, and those of a batch of F."""

FIRST_STEPS = aeb.SGLD(aeb.Polynomial(scale=1e-3, offset=0.0, power=1 / 3))


class Linear(nn.Module):
    """X beta."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """:param Tensor x: shape (n, p)."""
        return x @ self.beta


def gaussian(mean: Tensor, y: Tensor) -> Tensor:
    """The log likelihood with noise of variance 1, without its constant."""
    z = y - mean
    return -0.5 * torch.dot(z, z)


def linear_model(X: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    """Sparse regression with a learned sigma squared and delta."""
    n, p = X.shape
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta=delta, sigma=sigma2.sqrt()))
    with pyro.plate("data", n, subsample_size=batch_size) as i:
        pyro.sample("y", dist.Normal(X[i] @ beta, sigma2.sqrt()), obs=y[i])


def first() -> Workload:
    """The quickstart's program."""
    X = torch.randn(N, FIRST)
    y = X[:, :3] @ torch.tensor([3.0, 2.0, 1.0]) + torch.randn(N)
    return Workload(
        name="F",
        network=Linear(FIRST),
        x=X,
        y=y,
        rows=torch.arange(HALF),
        data=N,
        log_likelihood=gaussian,
        sparse=("beta",),
        model=linear_model,
        arguments=(X, y, HALF),
        one_batch=(X, y, HALF),
        step_size=1e-4,
        priors=Priors(0.1, 10.0, 1.0, float(FIRST), 1.0, 1.0),
        transition=FIRST_STEPS,
        friction=1.0,
    )


def linear() -> Workload:
    """Sparse regression on all rows."""
    X = torch.randn(N, P)
    y = 3.0 * X[:, 0] + torch.randn(N)
    return Workload(
        name="L",
        network=Linear(P),
        x=X,
        y=y,
        rows=None,
        data=N,
        log_likelihood=gaussian,
        sparse=("beta",),
        model=linear_model,
        arguments=(X, y),
        one_batch=(X, y),
        step_size=1e-6,
        priors=Priors(0.1, 10.0, 1.0, float(P), 1.0, 1.0),
    )


# -- M ---------------------------------------------------------------------------------------------

SIZES = {"784-400": (784, 400), "400-400": (400, 400), "400-10": (400, 10)}
"""The layers of an MLP of 477,600 sparse weights and 810 biases."""


def categorical(logits: Tensor, y: Tensor) -> Tensor:
    """The log likelihood of classes."""
    return -nn.functional.cross_entropy(logits, y, reduction="sum")


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
        x = torch.relu(nn.functional.linear(x, weight, bias))
    return nn.functional.linear(x, weights[-1], biases[-1])


def dense_network() -> Workload:
    """The MLP."""
    data, batch_size = 10_000, 100
    x, y = torch.randn(data, 784), torch.randint(10, (data,))
    layers: list[nn.Module] = []
    for inputs, outputs in SIZES.values():
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    return Workload(
        name="M",
        network=network,
        x=x,
        y=y,
        rows=torch.arange(batch_size),
        data=data,
        log_likelihood=categorical,
        sparse=tuple(name for name, _ in network.named_parameters() if name.endswith("weight")),
        model=mlp_model,
        arguments=(x, y, batch_size),
        one_batch=(x, y, batch_size),
        step_size=1e-9,
    )


# -- C and R ---------------------------------------------------------------------------------------


class Batches(TensorDataset):
    """Images of which a loader fetches a whole batch at once."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(tensor[torch.tensor(indices)] for tensor in self.tensors)


def whole(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The collation of :class:`Batches`."""
    return batch


def image_network(
    name: str,
    network: nn.Module,
    sparse: str,
    image: tuple[int, int, int],
    batch_size: int,
    priors: Priors,
) -> Workload:
    """
    A network that :func:`pyro_aeb.nn.bayesianize` made Bayesian, on ten batches of images.

    :param sparse: as bayesianize takes it.
    """
    data = 10 * batch_size
    x, y = torch.randn(data, *image), torch.randint(10, (data,))
    net = aeb.nn.bayesianize(
        network,
        sparse=sparse,
        v0=priors.v0,
        v1=priors.v1,
        delta=dist.Beta(priors.a, priors.b),
        sigma2=dist.InverseGamma(0.5 * priors.nu, 0.5 * priors.nu_lambda),
        dense_scale=priors.dense_scale,
    )

    def model(x: Tensor, y: Tensor) -> None:
        logits = net(x)
        with pyro.plate("data", data, subsample=x):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    loader = DataLoader(Batches(x, y), batch_size=batch_size, shuffle=True, collate_fn=whole)
    x, y = x[:batch_size], y[:batch_size]
    return Workload(
        name=name,
        network=network,
        x=x,
        y=y,
        rows=None,
        data=data,
        log_likelihood=categorical,
        sparse=net.sparse_sites,
        model=model,
        arguments=(loader,),
        one_batch=(x, y),
        step_size=1e-9,
        priors=priors,
    )


def convolutional(batch_size: int = 100) -> Workload:
    """The first network of the MNIST experiments; its first linear layer, 627,200, is sparse."""
    return image_network(
        "C",
        networks.Net1(),
        "fc1",
        (1, 28, 28),
        batch_size,
        Priors(v0=1.0, v1=0.1, a=6.3e5, b=6.3e5, nu=1000.0, nu_lambda=1e6),
    )


def resnet(batch_size: int = 128) -> Workload:
    """A ResNet20; its 3x3 convolutions but the stem, 267,264 weights, are sparse."""
    return image_network(
        "R",
        networks.resnet20(),
        "*.conv*",
        (3, 32, 32),
        batch_size,
        Priors(v0=0.005, v1=1e-5, a=2.7e5, b=2.7e5, nu=1000.0, nu_lambda=1e6),
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "F": first,
    "L": linear,
    "M": dense_network,
    "C": convolutional,
    "R": resnet,
}
