# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Kinetic temperatures of the sites over a window of steps, and over the draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_aeb.tuning.saved import Saved


@dataclass
class Temperatures(Saved):
    """
    The sum of squared momenta over their variance, shape (..., D), over ``steps`` steps.
    """

    total: Tensor
    steps: int = 0

    def add(self, momentum: Tensor, tau: float) -> None:
        """Add a step."""
        self.total.addcmul_(momentum, momentum, value=tau)
        self.steps += 1

    def restart(self) -> None:
        """Begin another window."""
        self.total = torch.zeros_like(self.total)
        self.steps = 0

    def by_site(self, sites: Mapping[str, slice]) -> dict[str, float]:
        """
        Return the mean over the window of every site, over its weights and chains; without weights
        that have not moved, which pruning holds at zero.
        """
        total = self.total / max(self.steps, 1)
        means = {}
        for name, place in sites.items():
            values = total[..., place]
            moving = values[values > 0.0]
            means[name] = float(moving.mean()) if len(moving) else 1.0
        return means

    def excess(self, sites: Mapping[str, slice], friction: float) -> float:
        """
        Return how far the temperature of the worst site is above 1, less its standard error.
        """
        chains = self.total.numel() // self.total.shape[-1]
        worst = -1.0
        for name, temperature in self.by_site(sites).items():
            place = sites[name]
            numbers = chains * (place.stop - place.start)
            worst = max(worst, temperature - 1.0 - standard_error(numbers, self.steps, friction))
        return worst


@dataclass
class Heat(Saved):
    """
    Sums of the sites' temperatures over draws, shape (sites,).

    :param said: the sites that have been warned of.
    """

    total: Tensor
    count: int = 0
    said: list[str] = field(default_factory=list)

    def add(self, temperatures: Tensor) -> None:
        """Add those of a draw, shape (..., sites); NaN where all weights are held at zero."""
        self.count += 1
        sites = temperatures.shape[-1]
        self.total = self.total + temperatures.nan_to_num(1.0).reshape(-1, sites).mean(0)

    def means(self) -> list[float]:
        """Return the means over the draws; none before the first."""
        return [] if self.count == 0 else (self.total / self.count).tolist()


def standard_error(numbers: int, steps: int, friction: float) -> float:
    """Return the standard error of a temperature of so many numbers over so many steps."""
    return math.sqrt(2.0 / max(1.0, numbers * steps * min(1.0, friction)))
