# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A pilot of the frozen chain, whose autocorrelation times give the steps per draw."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.tuning.saved import Saved

EVERY = 4
"""Steps between two records."""

MONITORED = 64
"""The most weights that are recorded."""

ENOUGH = 20.0
"""Autocorrelation times after which a pilot may be believed."""

MOST_STEPS = 50
"""The most steps per draw: draws cost less than the steps between them."""


@dataclass
class Pilot(Saved):
    """
    Positions of some weights at every fourth step.

    :param Tensor selected: their places in the position.
    :param records: of shape (..., M) each.
    """

    selected: Tensor
    records: list[Tensor] = field(default_factory=list)

    def add(self, position: Tensor) -> None:
        """Record a position, shape (..., D)."""
        self.records.append(position[..., self.selected].reshape(-1).clone())

    def slowest(self) -> tuple[float, int]:
        """
        Return the steps that an independent draw of the slowest weight takes, or of its square, and
        the weight's place in the position.
        """
        values = torch.stack(self.records).double().cpu().numpy()
        values = values - values.mean(0)
        times = autocorrelation_times(np.concatenate([values, values**2], axis=1))
        weight = int(times.argmax()) % len(self.selected)
        return EVERY * float(times.max()), int(self.selected[weight])


def autocorrelation_times(values: np.ndarray) -> np.ndarray:
    """
    Return integrated autocorrelation times, by Geyer's initial positive sequence.

    :param values: shape (n, M); those of the M columns are returned.
    """
    values = values - values.mean(0)
    count = len(values)
    spectrum = np.fft.rfft(values, 2 * count, axis=0)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), axis=0)[:count]
    correlation = covariance / np.maximum(covariance[0], 1e-300)
    pairs = correlation[0 : count - 1 : 2] + correlation[1:count:2]
    positive = np.cumprod(pairs > 0.0, axis=0)
    return np.maximum(2.0 * (pairs * positive).sum(0) - 1.0, 1.0)


def steps_per_draw(time: float, multiple: int = 1) -> int:
    """
    Return half an autocorrelation time, so that two draws are worth one that is independent.

    :param int multiple: a number that divides the steps.
    """
    steps = min(max(round(0.5 * time), 1), MOST_STEPS)
    return multiple * math.ceil(steps / multiple)
