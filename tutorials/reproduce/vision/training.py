# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How networks are called, trained by Adam, and scored.

:func:`logits_of` calls a network, plain or Bayesian, in single precision or in bfloat16. On it
stand :class:`Classification`, the Pyro model that the samplers run, :class:`Adam`, and
:func:`probabilities_of`, whose result :func:`scores_of` scores.
"""

from __future__ import annotations

from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pyro_aeb as aeb

Precision = Literal["fp32", "bf16"]
Batches = DataLoader[tuple[Tensor, Tensor]]


def logits_of(net: nn.Module, images: Tensor, precision: Precision = "fp32") -> Tensor:
    """
    A network's logits, always of single precision.

    :param net: maps images to logits.
    :param Tensor images: shape (n, C, H, W); channels go last in memory, which convolutions like.
    :param str precision: ``"bf16"`` runs what torch's autocast lists in bfloat16; the weights stay
        in single precision.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = net(images)
    return logits.float()


class Classification:
    """
    The Pyro model of a classifier, for :class:`~pyro_aeb.AEBKernel` and for prediction. An object
    of a class, not a closure, so that chains in processes of their own can have it.

    :param net: of :func:`pyro_aeb.nn.bayesianize`.
    :param int size: number of training images N, by which a batch's likelihood is scaled.
    :param str precision: of :func:`logits_of`.
    """

    def __init__(self, net: nn.Module, size: int, precision: Precision = "fp32") -> None:
        self.net = net
        self.size = size
        self.precision = precision

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        :param Tensor x: images, shape (n, C, H, W).
        :param Tensor y: labels, shape (n,); None to draw them.
        """
        logits = logits_of(self.net, x, self.precision)
        with pyro.plate("data", self.size, subsample=x):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


class Adam:
    """
    Minimises the cross-entropy by Adam, without weight decay; epochs follow one another. Its state
    can be saved and restored, with the place in the data.

    :param net: trained in place, in training mode.
    :param batches: training images, of a loader with a generator of its own.
    :param float learning_rate: of Adam.
    :param str precision: of :func:`logits_of`.
    """

    def __init__(
        self,
        net: nn.Module,
        batches: Batches,
        learning_rate: float = 1e-3,
        precision: Precision = "fp32",
    ) -> None:
        self.net, self.precision = net, precision
        self._batches = batches
        self._optimiser = torch.optim.Adam(net.parameters(), learning_rate)
        self._start_epoch()

    def advance(self, steps: int) -> None:
        """Make some steps."""
        self.net.train()
        for _ in range(steps):
            images, labels = self._next_batch()
            self._optimiser.zero_grad()
            F.cross_entropy(logits_of(self.net, images, self.precision), labels).backward()
            self._optimiser.step()

    def state(self) -> dict[str, Any]:
        """Return weights, moments, the place in the data, and torch's random state, for dropout."""
        return {
            "net": self.net.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "order": self._order,
            "fetched": self._fetched,
            "random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state`. The epoch's batches are read again up to its place."""
        self.net.load_state_dict(state["net"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._batches.generator.set_state(state["order"])
        self._start_epoch()
        for _ in range(state["fetched"]):
            self._next_batch()
        torch.set_rng_state(state["random"])

    def _start_epoch(self) -> None:
        self._order = self._batches.generator.get_state()
        self._iterator, self._fetched = iter(self._batches), 0

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        batch = next(self._iterator, None)
        if batch is None:
            self._start_epoch()
            batch = next(self._iterator)
        self._fetched += 1
        return batch


@torch.no_grad()
def probabilities_of(
    net: nn.Module, batches: Batches, precision: Precision = "fp32"
) -> tuple[Tensor, Tensor]:
    """
    Predictions in evaluation mode; the training flag is put back.

    :param batches: in order, not shuffled.
    :returns: probabilities of shape (n, classes), and labels of shape (n,).
    """
    training = net.training
    net.eval()
    parts = [
        (F.softmax(logits_of(net, images, precision), -1), labels) for images, labels in batches
    ]
    net.train(training)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def scores_of(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """
    Accuracy in percent, negative log-likelihood in nats, expected calibration error in percent over
    15 bins, and Brier score, each a mean over images.

    :param Tensor probabilities: shape (n, classes).
    :param Tensor labels: shape (n,).
    """
    return {
        "accuracy": 100.0 * float(aeb.nn.scores.accuracy(probabilities, labels)),
        "nll": float(aeb.nn.scores.negative_log_likelihood(probabilities, labels)),
        "ece": 100.0 * float(aeb.nn.scores.calibration_error(probabilities, labels)),
        "brier": float(aeb.nn.scores.brier(probabilities, labels)),
    }
