# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A store of draws in memory."""

from __future__ import annotations

from pyro_aeb.storage.recorder import Record, StoredDraws, map_draws


class MemoryStore:
    """
    The draws of a run in memory, which is allocated once for all draws, on the device of the first.
    """

    def __init__(self, chains: int, draws: int) -> None:
        self._chains = chains
        self._count = draws
        self._draws: StoredDraws = {}
        self._is_restored = False

    def write(self, chain: int | None, draw: int, record: Record) -> None:
        """
        Write a draw; one that is there already is overwritten.

        :param chain: its number; None for a record of all chains, whose values have a leading axis
            of chains.
        :param int draw: its number, from 0.
        """
        if not self._draws:
            self._allocate(record, 0 if chain is not None else 1)
        if self._is_restored:
            self._move_to_device(record)
        place = slice(None) if chain is None else chain, draw
        for group, values in record.items():
            for name, value in values.items():
                self._draws[group][name][place] = value

    def restore(self, chain: int | None, first: int, draws: StoredDraws) -> int:
        """
        Write consecutive draws that were read before; return their number.

        :param chain: number of their chain; None for all chains.
        :param draws: values of shape (chains, draws, ...), of one chain or of all.
        """
        if not self._draws:
            self._allocate(map_draws(lambda values: values[:, 0], draws), 1)
        self._is_restored = True
        count = next(iter(draws["sample_stats"].values())).shape[1]
        chains = slice(None) if chain is None else slice(chain, chain + 1)
        for group, values in draws.items():
            for name, value in values.items():
                self._draws[group][name][chains, first : first + value.shape[1]] = value
        return count

    def read(self) -> StoredDraws:
        """Return all draws; those that have not been written are undefined."""
        return {group: dict(values) for group, values in self._draws.items()}

    def grow(self, draws: int) -> None:
        """Make room for ``draws`` draws of every chain."""
        for values in self._draws.values():
            for name in values:  # one after the other, so that one at a time is in memory twice
                old = values[name]
                values[name] = old.new_empty((self._chains, draws, *old.shape[2:]))
                values[name][:, : self._count] = old
        self._count = draws

    def flush(self) -> None:
        """Do nothing: there is no file."""

    def _move_to_device(self, record: Record) -> None:
        """Move restored draws, which come from files, to the device of new ones."""
        for group, values in record.items():
            for name, value in values.items():
                self._draws[group][name] = self._draws[group][name].to(value.device)
        self._is_restored = False

    def _allocate(self, record: Record, axis: int) -> None:
        """
        Allocate memory for draws like a record.

        :param int axis: of its values, from which on they have the shape of one chain's draw.
        """
        size = self._chains, self._count
        self._draws = map_draws(lambda value: value.new_empty((*size, *value.shape[axis:])), record)
