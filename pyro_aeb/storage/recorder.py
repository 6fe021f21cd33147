# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a chain has recorded: statistics of every draw, learned latents, and the draws.

Nothing small and lasting is allocated at a draw: statistics are Python's numbers, and draws go into
blocks of rows. A small tensor that stays, made among the large ones that a step makes and frees,
keeps the C library's allocator from joining the memory around it, and a large model's process would
grow by several times its weights at every draw.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

Record = Mapping[str, Mapping[str, Tensor]]
"""
What is kept of a draw, by group and name: the sites of the ``posterior``, the ``sample_stats``, and
the inclusion probabilities, ``adaptation``.
"""


RECOVERY_BYTES = 256 * 2**20
"""How much of the latest draws a kernel keeps, to hand out if a run is cut short."""


BLOCK_BYTES = 2**20
"""About how large a block of draws is."""


class Recorder(Protocol):
    """Where a chain records its draws."""

    def add(
        self,
        draw: Mapping[str, Tensor],
        stats: Mapping[str, Tensor | float | bool],
        latents: Mapping[str, Tensor],
    ) -> None:
        """Records a draw, its statistics (numbers) and its learned latents; copies them."""
        ...

    def forget_draws(self) -> None:
        """Lets go of the draws, once someone else holds them."""
        ...

    def draws(self) -> dict[str, Tensor]:
        """The draws kept, site name to tensor of shape (draws, ...)."""
        ...

    def stats(self) -> dict[str, Tensor]:
        """Statistics of every draw, name to tensor of shape (draws,)."""
        ...

    def latents(self) -> dict[str, Tensor]:
        """Learned latents at every draw, name to tensor of shape (draws, ...)."""
        ...


class History:
    """
    Records one chain, of a number of draws that is not known.

    Draws are kept up to :data:`RECOVERY_BYTES`, the latest last; everything else is kept whole.
    """

    def __init__(self) -> None:
        self._stats: dict[str, list[Any]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._latents = _Rows()
        self._draws = _Rows(RECOVERY_BYTES)

    def add(
        self,
        draw: Mapping[str, Tensor],
        stats: Mapping[str, Tensor | float | bool],
        latents: Mapping[str, Tensor],
    ) -> None:
        """Records a draw, its statistics (numbers) and its learned latents."""
        for name, value in stats.items():
            tensor = torch.as_tensor(value)
            self._dtypes.setdefault(name, tensor.dtype)
            self._stats.setdefault(name, []).append(tensor.tolist())
        self._latents.add(latents)
        self._draws.add(draw)

    def forget_draws(self) -> None:
        """Lets go of the draws, once someone else holds them."""
        self._draws = _Rows(RECOVERY_BYTES)

    def draws(self) -> dict[str, Tensor]:
        """The draws kept, site name to tensor of shape (draws, ...)."""
        return self._draws.stacked()

    def stats(self) -> dict[str, Tensor]:
        """Statistics of every draw, name to tensor of shape (draws,)."""
        return {n: torch.tensor(values, dtype=self._dtypes[n]) for n, values in self._stats.items()}

    def latents(self) -> dict[str, Tensor]:
        """Learned latents at every draw, name to tensor of shape (draws, ...)."""
        return self._latents.stacked()


class _Rows:
    """
    The latest rows that fit into a number of bytes, at least one, in blocks.

    :param most: that number, None for all rows.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._blocks: deque[dict[str, Tensor]] = deque()
        self._rows = 0  # of a block
        self._room = 0  # draws that may be kept
        self._first = 0  # the oldest draw that is kept, counted in rows of the first block
        self._count = 0

    def add(self, draw: Mapping[str, Tensor]) -> None:
        if not draw:
            return
        if not self._blocks:
            size = max(sum(value.nbytes for value in draw.values()), 1)
            self._room = sys.maxsize if self._most is None else max(self._most // size, 1)
            self._rows = min(max(BLOCK_BYTES // size, 1), 1024)
        row = (self._first + self._count) % self._rows
        if row == 0:
            self._blocks.append({n: v.new_empty((self._rows, *v.shape)) for n, v in draw.items()})
        for name, value in draw.items():
            self._blocks[-1][name][row] = value
        if self._count < self._room:
            self._count += 1
            return
        self._first += 1
        if self._first == self._rows:
            self._first = 0
            self._blocks.popleft()

    def stacked(self) -> dict[str, Tensor]:
        if not self._blocks:
            return {}
        kept = slice(self._first, self._first + self._count)
        return {n: torch.cat([block[n] for block in self._blocks])[kept] for n in self._blocks[0]}


Rows = dict[str, dict[str, Tensor]]
"""Group to name to tensor of shape (chains, draws, ...)."""


class Store(Protocol):
    """Takes the records of a run."""

    def write(self, chain: int | None, draw: int, record: Record) -> None:
        """
        Writes a draw, over an earlier one in its place.

        :param chain: whose draw it is; None for a record of all chains at once, whose values have a
            leading axis of chains.
        :param int draw: counted from 0.
        """
        ...

    def read(self) -> Rows:
        """What has been written; rows that have not are undefined."""
        ...

    def grow(self, draws: int) -> None:
        """Makes room for so many draws a chain in all."""
        ...

    def flush(self) -> None:
        """Returns once all that was written will outlive the process, where it is meant to."""
        ...

    def close(self) -> None:
        """Flushes, and lets go of open files."""
        ...


class StoreRecorder:
    """
    Records the draws of a chain, or of all chains together, in a store; a
    :class:`~pyro_aeb.storage.recorder.Recorder`.

    :param Store store: of the run.
    :param chain: which chain, None for all of them together.
    :param torch.Size shape: () of one chain, (C,) of C together.
    :param int count: draws of it that the store has already.
    """

    def __init__(self, store: Store, chain: int | None, shape: torch.Size, count: int) -> None:
        self._store = store
        self._chain = chain
        self._shape = shape
        self.count = count

    def add(
        self,
        draw: Mapping[str, Tensor],
        stats: Mapping[str, Tensor | float | bool],
        latents: Mapping[str, Tensor],
    ) -> None:
        numbers = {name: torch.as_tensor(value) for name, value in stats.items()}
        record = {
            "posterior": draw,
            "sample_stats": {name: value.expand(self._shape) for name, value in numbers.items()},
            "adaptation": latents,
        }
        self._store.write(self._chain, self.count, record)
        self.count += 1

    def forget_draws(self) -> None:
        pass

    def draws(self) -> dict[str, Tensor]:
        return self._own("posterior")

    def stats(self) -> dict[str, Tensor]:
        return self._own("sample_stats")

    def latents(self) -> dict[str, Tensor]:
        return self._own("adaptation")

    def _own(self, group: str) -> dict[str, Tensor]:
        if not self.count:
            return {}
        rows = self._store.read().get(group, {})
        if self._chain is None:
            return {name: values[:, : self.count] for name, values in rows.items()}
        return {name: values[self._chain, : self.count] for name, values in rows.items()}
