# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The path of warm-up: settings and temperatures, window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_aeb.tuning.saved import Saved


@dataclass
class Path(Saved):
    """Figures of every window of warm-up so far, name to list."""

    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Mapping[str, float]) -> None:
        """Add those of a window."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(float(value))

    def tensors(self) -> dict[str, Tensor]:
        """Return the figures, shape (windows,) each."""
        return {
            name: torch.tensor(values, dtype=torch.float64) for name, values in self.figures.items()
        }
