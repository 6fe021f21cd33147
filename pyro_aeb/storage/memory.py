# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Where the draws of a run go: rows that are set aside once, and written draw by draw.

What is kept of a draw is a :data:`~pyro_aeb.storage.recorder.Record`. A
:class:`~pyro_aeb.storage.recorder.Store` takes records by chain and draw. :class:`MemoryStore`
keeps them in memory, :class:`~pyro_aeb.storage.zarr_trace.TraceFile` in a file.
"""

from __future__ import annotations

from pyro_aeb.storage.recorder import Record, StoredDraws


class MemoryStore:
    """
    Rows in memory: what is kept, and nothing else, on the device of the draws.

    :param int chains: how many.
    :param int draws: of every chain.
    """

    def __init__(self, chains: int, draws: int) -> None:
        self._chains = chains
        self._draws = draws
        self._rows: StoredDraws = {}
        self._put = False

    def write(self, chain: int | None, draw: int, record: Record) -> None:
        if not self._rows:
            self._allocate(chain, record)
        if self._put:
            self._move(record)
        for group, values in record.items():
            rows = self._rows[group]
            for name, value in values.items():
                if chain is None:
                    rows[name][:, draw] = value
                else:
                    rows[name][chain, draw] = value

    def put(self, chain: int | None, first: int, rows: StoredDraws) -> int:
        """
        Puts back consecutive draws that were read before; their number.

        :param chain: whose they are, None for those of all chains.
        :param int first: number of the first.
        :param rows: values of shape (chains, draws, ...), of one chain or of all.
        """
        if not self._rows:
            record = {g: {n: v[:, 0] for n, v in values.items()} for g, values in rows.items()}
            self._allocate(None, record)
        self._put = True
        place = slice(None) if chain is None else slice(chain, chain + 1)
        for group, values in rows.items():
            for name, value in values.items():
                self._rows[group][name][place, first : first + value.shape[1]] = value
        return next(iter(rows["sample_stats"].values())).shape[1]

    def read(self) -> StoredDraws:
        return {group: dict(rows) for group, rows in self._rows.items()}

    def grow(self, draws: int) -> None:
        for rows in self._rows.values():
            for name in rows:  # one after the other, so that one at a time is there twice
                old = rows[name]
                rows[name] = old.new_empty((self._chains, draws, *old.shape[2:]))
                rows[name][:, : self._draws] = old
        self._draws = draws

    def flush(self) -> None:
        pass

    def _move(self, record: Record) -> None:
        """What was put back came from a file: goes on on the device of the draws."""
        for group, values in record.items():
            rows = self._rows[group]
            for name, value in values.items():
                rows[name] = rows[name].to(value.device)
        self._put = False

    def _allocate(self, chain: int | None, record: Record) -> None:
        axes = 0 if chain is not None else 1
        self._rows = {
            group: {
                name: value.new_empty((self._chains, self._draws, *value.shape[axes:]))
                for name, value in values.items()
            }
            for group, values in record.items()
        }
