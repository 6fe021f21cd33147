# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The rows of the table: each a prior, a temperature and a way to learn the latents. Everything else
(start, batches, step sizes, pruning, priors of the dense weights) is the same for all of them.

The rows without an SSGL prior have a Normal one on every weight, the same as the dense weights of
the other rows. (In the paper's code the sparse layers of these rows had next to no penalty.)
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_aeb as aeb

from .protocol import DENSE_SCALE, WIDTHS, Changes, Clock, Protocol, weight

SPARSE_LAYERS = "*.conv*"
"""The 3x3 convolutions of the blocks: neither the stem nor the shortcuts."""

NOTHING = Changes()

FRICTION = 0.1
"""One minus the momentum of 0.9."""


@dataclass(frozen=True)
class Method:
    """
    One row.

    :param str label: its name in the table.
    :param learns: ``"SA"``, ``"EM"``, or None for Normal priors.
    :param bool annealed: whether the inverse temperature rises.
    :param bool noise: whether noise is injected; without it SGHMC is gradient descent with
        momentum.
    """

    label: str
    learns: str | None = None
    annealed: bool = False
    noise: bool = True


METHODS = {
    "a-sghmc": Method("A-SGHMC", annealed=True),
    "a-sghmc-em": Method("A-SGHMC-EM", "EM", annealed=True),
    "sghmc-sa": Method("SGHMC-SA", "SA"),
    "a-sghmc-sa": Method("A-SGHMC-SA", "SA", annealed=True),
    "gmp": Method("gradual magnitude pruning", noise=False),
}


def task_name(method: str, percent: int) -> str:
    """The name of a method at a target sparsity in percent."""
    return f"{method}@{percent}"


def parse_task(name: str) -> tuple[str, int]:
    """
    Method and percent of a :func:`task_name`.

    :raises KeyError: if there is no such method, or no widths v0 and v1 for the sparsity.
    """
    method, _, percent = name.partition("@")
    if method not in METHODS or not percent.isdigit() or int(percent) not in WIDTHS:
        raise KeyError(name)
    return method, int(percent)


class Classifier:
    """
    A model for the kernel: classes of images, by a Bayesian network.

    :param net: from images to logits, by ``aeb.nn.bayesianize``.
    :param int data: N, the number of training images.
    :param str precision: ``"fp32"``, or ``"bf16"`` for autocast inside the network.
    """

    def __init__(self, net: nn.Module, data: int, precision: str) -> None:
        self.net = net
        self.data = data
        self.precision = precision

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        :param Tensor x: normalised images, shape (n, 3, H, W).
        :param Tensor y: classes, shape (n,), or None to sample them.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.net(x).float()
        with pyro.plate("data", self.data, subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def dense_network(module: nn.Module) -> aeb.nn.BayesianModule:
    """A Normal prior for every weight."""
    return aeb.nn.bayesianize(module, sparse=[], delta=0.5, sigma2=1.0, dense_scale=DENSE_SCALE)


def sparse_network(
    module: nn.Module, percent: int, changes: Changes = NOTHING
) -> aeb.nn.BayesianModule:
    """SSGL priors in the sparse layers, with the paper's constants; first delta 0.5 and sigma 1."""
    v0, v1 = WIDTHS[percent]
    return aeb.nn.bayesianize(
        module,
        sparse=SPARSE_LAYERS,
        v0=v0 * changes.v0,
        v1=v1 * changes.v1,
        delta=dist.Beta(2.7e5, 2.7e5),
        sigma2=dist.InverseGamma(500.0, 5e5),  # nu = lambda = 1000
        dense_scale=DENSE_SCALE,
    )


def sparse_sites(module: nn.Module) -> list[str]:
    """The weights that pruning may set to zero, the same for every method."""
    return list(sparse_network(module, 90).sparse_sites)


def build(
    name: str, module: nn.Module, protocol: Protocol, clock: Clock, steps_per_draw: int, seed: int
) -> tuple[aeb.nn.BayesianModule, aeb.AEBKernel]:
    """
    One row's network and kernel.

    :param str name: of the task, method and target sparsity.
    :param module: the dense network to start from.
    :param Protocol protocol: its step scales, pruning and precision count here.
    :param Clock clock: the schedules.
    :param int steps_per_draw: steps between draws.
    :param int seed: of the noise.
    """
    key, percent = parse_task(name)
    method = METHODS[key]
    changes = protocol.changes
    net = sparse_network(module, percent, changes) if method.learns else dense_network(module)
    model = Classifier(net, clock.data, protocol.precision)
    scales = {None: protocol.normal_scale, "SA": protocol.sa_scale, "EM": protocol.em_scale}
    adaptation = None
    if method.learns:
        adaptation = aeb.StochasticApproximation(
            weight(changes.omega) if method.learns == "SA" else 1.0,
            initial_penalty=5e-4 if changes.penalties == "averaged" else None,
            penalties=changes.penalties,
            sigma_from=changes.sigma_from,
        )
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(
            clock.step_size(scales[method.learns]),
            FRICTION,
            gradient_noise=0.0 if method.noise else FRICTION,
        ),
        adaptation=adaptation,
        inverse_temperature=clock.inverse_temperature(method.annealed),
        pruning=aeb.MagnitudePruning(
            clock.sparsity(percent / 100, protocol.pruning_damping), sites=sparse_sites(module)
        ),
        steps_per_draw=steps_per_draw,
        save=["fc.bias", *net.latent_sites],
        seed=seed,
        compile=False,
    )
    return net, kernel
