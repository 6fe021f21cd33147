# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Recorders, which receive the draws of a chain."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Record = Mapping[str, Mapping[str, Tensor]]
"""
A draw, by group and name: the sites of the ``posterior``, the ``sample_stats``, and the inclusion
probabilities, ``adaptation``.
"""

StoredDraws = dict[str, dict[str, Tensor]]
"""Group to name to tensor of shape (chains, draws, ...)."""


def map_draws(function: Callable[[Any], Any], draws: Mapping[str, Mapping[str, Any]]) -> Any:
    """Apply a function to all values by group and name; return the results alike."""
    return {group: {n: function(x) for n, x in sites.items()} for group, sites in draws.items()}


RECOVERY_BYTES = 256 * 2**20
"""Bytes of the latest draws that :class:`History` keeps, for a run that is cut short."""

BLOCK_BYTES = 2**20
"""Approximate bytes of a block of draws."""


class Recorder:
    """Receives the draws of a chain, or of several that step together, and keeps none itself."""

    def add(self, number: int, record: Record) -> None:
        """
        Record a draw; its tensors are copied.

        :param int number: of the recorded draws, counted from 0.
        """

    def read(self, group: str) -> dict[str, Tensor]:
        """Return the recorded draws of a group, name to tensor of shape (draws, ...)."""
        return {}

    def forget_draws(self) -> None:
        """Drop the draws of the ``posterior``, if this recorder alone keeps them."""


class History(Recorder):
    """
    Records one chain whose number of draws is not known.

    The latest draws are kept, up to :data:`RECOVERY_BYTES`; statistics and inclusion probabilities
    are kept whole. No small tensor is kept of a draw: statistics become Python numbers, and draws
    go into blocks. Small tensors that outlive a step would keep the C allocator from merging the
    memory that a step frees around them, and the process of a large model would grow by several
    times its weights at every draw.
    """

    def __init__(self) -> None:
        self._statistics: dict[str, list[Any]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._adaptation = _RingBuffer()
        self._draws = _RingBuffer(RECOVERY_BYTES)

    def add(self, number: int, record: Record) -> None:
        for name, value in record["sample_stats"].items():
            self._dtypes.setdefault(name, value.dtype)
            self._statistics.setdefault(name, []).append(value.tolist())
        self._adaptation.add(record["adaptation"])
        self._draws.add(record["posterior"])

    def read(self, group: str) -> dict[str, Tensor]:
        if group == "sample_stats":
            dtypes = self._dtypes
            return {n: torch.tensor(x, dtype=dtypes[n]) for n, x in self._statistics.items()}
        return (self._draws if group == "posterior" else self._adaptation).read()

    def forget_draws(self) -> None:
        self._draws = _RingBuffer(RECOVERY_BYTES)


class _RingBuffer:
    """
    The latest draws that fit into ``capacity`` bytes, at least one, stored in blocks.

    :param capacity: None for no limit.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._blocks: deque[dict[str, Tensor]] = deque()
        self._block_size = 0  # draws of a block
        self._most = 0  # draws that may be kept
        self._first = 0  # place of the oldest draw in the first block
        self._count = 0

    def add(self, draw: Mapping[str, Tensor]) -> None:
        if not draw:
            return
        if not self._blocks:
            size = max(sum(value.nbytes for value in draw.values()), 1)
            self._most = sys.maxsize if self._capacity is None else max(self._capacity // size, 1)
            self._block_size = min(max(BLOCK_BYTES // size, 1), 1024)
        place = (self._first + self._count) % self._block_size
        if place == 0:
            self._blocks.append(
                {n: v.new_empty((self._block_size, *v.shape)) for n, v in draw.items()}
            )
        for name, value in draw.items():
            self._blocks[-1][name][place] = value
        if self._count < self._most:
            self._count += 1
            return
        self._first += 1
        if self._first == self._block_size:
            self._first = 0
            self._blocks.popleft()

    def read(self) -> dict[str, Tensor]:
        if not self._blocks:
            return {}
        kept = slice(self._first, self._first + self._count)
        return {n: torch.cat([block[n] for block in self._blocks])[kept] for n in self._blocks[0]}
