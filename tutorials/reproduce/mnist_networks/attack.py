# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Adversarial images from the draws that ``mnist.py`` stored.

With P(y | x) the average of the draws' predictions, every pixel moves by zeta against the class
predicted at x:

    x' = clip(x - zeta sign(grad_x log max_y P(y | x)), 0, 1)

and the average of the same draws predicts x'. Vanilla and Dropout, networks of one draw, are
attacked and scored alike; the attacker of Dropout sees the network without dropout, as it predicts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vision.augment import PLAIN
from vision.data import batches, load
from vision.training import Precision, logits_of

from .protocol import ADAM, Row
from .training import network_of

STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
BATCH = 250


def figure_of(strength: float) -> str:
    """The column of an attack's accuracy."""
    return f"zeta_{strength:g}"


FIGURES = tuple(figure_of(strength) for strength in STRENGTHS)


@dataclass(frozen=True)
class Attack:
    """
    The settings that all rows of a run share.

    :param draws: the folder of the stored draws.
    :param data_dir: of the images; None makes some up.
    :param bool download: whether they may be downloaded.
    :param str device: of the computations.
    :param int images: how many of the test images, from the first on.
    :param str precision: of predictions; gradients are always of single precision.
    """

    draws: Path
    data_dir: Path | None
    download: bool
    device: str
    images: int
    precision: Precision

    def settings_of(self, name: str) -> str:
        """Return the settings that decide a row's figures beside the draws, in a line."""
        return f"first {self.images} test images, predictions in {self.precision}"


def stored_rows(draws: Path) -> list[tuple[int, Row]]:
    """The seed and the row of every file of draws in a folder, in order."""
    pattern = re.compile(r"([a-z]+)-(net\d)-(.+)-(\d+)")
    found = [pattern.fullmatch(path.stem) for path in sorted(draws.glob("*.pt"))]
    return sorted((int(m[4]), Row(m[1], m[2], m[3])) for m in found if m)


def networks_of(row: Row, seed: int, attack: Attack) -> list[nn.Module]:
    """A network in evaluation mode for every draw; of Vanilla and Dropout the last alone."""
    name = f"{row.data}-{row.network}-{row.method}-{seed}.pt"
    states = torch.load(attack.draws / name, weights_only=True, map_location=attack.device)
    nets = []
    for state in states[-1:] if row.method in ADAM else states:
        net = network_of(row).to(attack.device).eval().requires_grad_(False)
        net.load_state_dict(state)
        nets.append(net)
    return nets


def log_average(nets: Sequence[nn.Module], images: Tensor, precision: Precision = "fp32") -> Tensor:
    """
    The logarithm of the average of the networks' probabilities. It stays in logarithms, so that its
    gradient does not vanish where a network is sure.

    :param nets: at least one.
    :param Tensor images: shape (n, C, H, W).
    :returns: shape (n, classes).
    """
    logs = [F.log_softmax(logits_of(net, images, precision), -1) for net in nets]
    return torch.stack(logs).logsumexp(0) - math.log(len(nets))


def direction(nets: Sequence[nn.Module], images: Tensor) -> Tensor:
    """
    The sign of the gradient of log max_y P(y | x) with respect to x, of the images' shape.

    :param nets: whose average is P.
    :param Tensor images: shape (n, C, H, W).
    """
    images = images.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        largest = log_average(nets, images).amax(-1)
        (gradient,) = torch.autograd.grad(largest.sum(), images)
    return gradient.sign()


def attacked(images: Tensor, signs: Tensor, strength: float) -> Tensor:
    """x' for a strength zeta."""
    return (images - strength * signs).clamp(0.0, 1.0)


def run_one(name: str, seed: int, attack: Attack) -> dict[str, float]:
    """
    Attacks one row with every strength.

    :param str name: of the row.
    :param int seed: of the row.
    :returns: accuracy in percent, by :func:`figure_of` the strength.
    """
    row = Row(*name.split())
    nets = networks_of(row, seed, attack)
    _, test = load(row.data, attack.data_dir, download=attack.download)
    test = test.take(slice(attack.images)).to(attack.device)
    right = dict.fromkeys(STRENGTHS, 0)
    for images, labels in batches(test, BATCH, PLAIN):
        signs = direction(nets, images)
        for strength in STRENGTHS:
            with torch.no_grad():
                log_p = log_average(nets, attacked(images, signs, strength), attack.precision)
            right[strength] += int((log_p.argmax(-1) == labels).sum())
    return {figure_of(s): 100.0 * count / len(test.labels) for s, count in right.items()}
