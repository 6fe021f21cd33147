# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The rows of the table, and the constants of every preset.

A row is named by its data, network and method, such as ``"fashion net1 sghmc-sa"``. Its
:class:`Protocol` comes from a preset; the same protocol serves all four methods on the same data
and network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from vision.augment import CLOTHES, DIGITS, PLAIN, Augmentation
from vision.networks import Net1, Net2
from vision.training import Precision

import pyro_aeb as aeb

DATA = ("mnist", "fashion")
NETWORKS = {"net1": Net1, "net2": Net2}
METHODS = {
    "vanilla": "Vanilla",
    "dropout": "Dropout",
    "sghmc": "SGHMC",
    "sghmc-sa": "SGHMC-SA",
}
ADAM = ("vanilla", "dropout")
AUGMENTED = {"mnist": DIGITS, "fashion": CLOTHES}
DROPOUT = 0.5


class Row(NamedTuple):
    """
    A row of the table.

    :param str data: of :data:`DATA`.
    :param str network: of :data:`NETWORKS`.
    :param str method: of :data:`METHODS`.
    """

    data: str
    network: str
    method: str

    def __str__(self) -> str:
        return " ".join(self)

    @property
    def augment(self) -> Augmentation:
        """Augmentation of training images: none with the first network, the paper's with net2."""
        return AUGMENTED[self.data] if self.network == "net2" else PLAIN


def row_named(name: str) -> Row:
    """
    Reads a row's name.

    :raises KeyError: if there is no such row.
    """
    row = Row(*name.split())
    if row.data not in DATA or row.network not in NETWORKS or row.method not in METHODS:
        raise KeyError(name)
    return row


@dataclass(frozen=True)
class Protocol:
    """
    Constants of a row.

    :param float epochs: of every chain.
    :param float adam_epochs: of Vanilla and Dropout.
    :param int batch: images a step.
    :param float step_size: eta during the burn-in; it multiplies the gradient of all images' log
        posterior.
    :param float late: factor on the step size after the burn-in.
    :param float burn_in: share of the steps before the first draw.
    :param int draws: posterior draws, equally spaced after the burn-in.
    :param float temperature: the inverse temperature tau.
    :param float dense_scale: standard deviation of the Normal prior: of all weights under SGHMC, of
        all but those of the sparse layer under SGHMC-SA.
    :param float v0: width of the Laplace component.
    :param float v1: variance of the Gaussian component.
    :param float nu: and lambda: sigma squared ~ InverseGamma(nu / 2, nu lambda / 2).
    :param omega: of stochastic approximation.
    :param float learning_rate: of Adam.
    :param str precision: of the networks' passes.
    """

    epochs: float
    adam_epochs: float
    batch: int
    step_size: float
    late: float
    burn_in: float
    draws: int
    temperature: float
    dense_scale: float = 0.2
    v0: float = 1.0
    v1: float = 0.1
    nu: float = 1000.0
    omega: aeb.Polynomial = aeb.Polynomial(1.0, 1000.0, 0.75)
    learning_rate: float = 1e-3
    precision: Precision = "fp32"

    def settings(self, method: str) -> str:
        """All that decides a row's figures beside seed and data, as one line of text."""
        shared = f"batch {self.batch}, {self.precision}"
        if method in ADAM:
            return f"Adam {self.learning_rate:g}, {self.adam_epochs:g} epochs, {shared}"
        text = (
            f"SGHMC, {self.epochs:g} epochs, {shared}, step size {self.step_size:g} and after a "
            f"burn-in of {self.burn_in:g} of the steps {self.late:g} times that, friction 0.1, "
            f"tau {self.temperature:g}, {self.draws} draws, Normal(0, {self.dense_scale:g})"
        )
        if method == "sghmc":
            return text
        return (
            f"{text}, first linear layer SSGL(v0 {self.v0:g}, v1 {self.v1:g}), "
            f"nu = lambda = {self.nu:g}, a = b = p, omega {self.omega!r}"
        )


def _paper(temperature: float) -> Protocol:
    """The paper's constants; the number of epochs is the authors' default for CIFAR-10."""
    return Protocol(
        epochs=1000,
        adam_epochs=1000,
        batch=1000,
        step_size=5e-7,
        late=1.0,
        burn_in=0.2,
        draws=96,
        temperature=temperature,
    )


PAPER = {
    (data, network): _paper(tau)
    for (data, tau), network in product((("mnist", 1000.0), ("fashion", 2500.0)), NETWORKS)
}

_SMOKE = replace(_paper(1000.0), epochs=2, adam_epochs=2, batch=50, draws=2, burn_in=0.5)
SMOKE = {pair: _SMOKE for pair in product(DATA, NETWORKS)}


def _cpu(temperature: float, epochs: float, adam_epochs: float) -> Protocol:
    """
    Short runs: small batches, in bfloat16. Chosen on validation images of Fashion-MNIST, as
    ``docs/results/mnist.md`` says. Adam gets more epochs, for a step of it costs less.
    """
    return Protocol(
        epochs=epochs,
        adam_epochs=adam_epochs,
        batch=100,
        step_size=8e-7,
        late=0.4,
        burn_in=0.6,
        draws=10,
        temperature=temperature,
        dense_scale=1.0,
        precision="bf16",
    )


CPU = {
    ("mnist", "net1"): _cpu(1000.0, 1.5, 1.9),
    ("mnist", "net2"): _cpu(1000.0, 1.5, 1.9),
    ("fashion", "net1"): _cpu(2500.0, 2, 2.5),
    ("fashion", "net2"): _cpu(2500.0, 2, 2.5),
}


def _long(temperature: float) -> Protocol:
    """Forty epochs of all methods; ``docs/results/deep_protocol.md`` says why these constants."""
    return Protocol(
        epochs=40,
        adam_epochs=40,
        batch=100,
        step_size=8e-7,
        late=0.2,
        burn_in=0.6,
        draws=16,
        temperature=temperature,
    )


LONG = {
    (data, network): _long(tau)
    for (data, tau), network in product((("mnist", 1000.0), ("fashion", 2500.0)), NETWORKS)
}

PRESETS = {"paper": PAPER, "long": LONG, "cpu": CPU, "smoke": SMOKE}
