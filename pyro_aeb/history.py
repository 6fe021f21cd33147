# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a chain has recorded: statistics of every draw, learned latents, and the draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

RECOVERY_BYTES = 256 * 2**20
"""How much of the latest draws a kernel keeps, to hand out if a run is cut short."""


class History:
    """
    Records one chain.

    Draws are kept up to :data:`RECOVERY_BYTES`, the latest last; everything else is kept whole.
    """

    def __init__(self) -> None:
        self._stats: dict[str, list[Tensor]] = {}
        self._latents: dict[str, list[Tensor]] = {}
        self._draws: deque[dict[str, Tensor]] = deque()
        self._bytes = 0

    def add(
        self,
        draw: Mapping[str, Tensor],
        stats: Mapping[str, Tensor | float | bool],
        latents: Mapping[str, Tensor],
    ) -> None:
        """Records a draw, its statistics (numbers) and its learned latents."""
        for name, value in stats.items():
            self._stats.setdefault(name, []).append(torch.as_tensor(value))
        for name, value in latents.items():
            self._latents.setdefault(name, []).append(value)
        self._draws.append(dict(draw))
        self._bytes += _bytes(draw)
        while self._bytes > RECOVERY_BYTES and len(self._draws) > 1:
            self._bytes -= _bytes(self._draws.popleft())

    def forget_draws(self) -> None:
        """Lets go of the draws, once someone else holds them."""
        self._draws.clear()
        self._bytes = 0

    def draws(self) -> dict[str, Tensor]:
        """The draws kept, site name to tensor of shape (draws, ...)."""
        if not self._draws:
            return {}
        return {name: torch.stack([d[name] for d in self._draws]) for name in self._draws[0]}

    def stats(self) -> dict[str, Tensor]:
        """Statistics of every draw, name to tensor of shape (draws,)."""
        return {name: torch.stack(values) for name, values in self._stats.items()}

    def latents(self) -> dict[str, Tensor]:
        """Learned latents at every draw, name to tensor of shape (draws, ...)."""
        return {name: torch.stack(values) for name, values in self._latents.items()}


def _bytes(draw: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in draw.values())
