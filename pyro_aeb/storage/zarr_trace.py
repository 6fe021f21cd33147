# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Draws in a Zarr store, which is written during a run and can be read by xarray and ArviZ meanwhile.

A store has the groups of the records, such as ``posterior`` and ``sample_stats``. Arrays are
(chain, draw, ...) with xarray's dimension names. :mod:`pyro_aeb.storage.zarr_store` has the files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_aeb.errors import shorten
from pyro_aeb.storage.recorder import Record, StoredDraws, map_draws
from pyro_aeb.storage.xarray_variables import (
    AxisNames,
    Groups,
    Variable,
    as_array,
    attributes_of_groups,
    by_name,
    to_container,
)
from pyro_aeb.storage.zarr_metadata import FINISHED, check_chunks, read_metadata
from pyro_aeb.storage.zarr_store import (
    Arrays,
    DrawLayout,
    ZarrStore,
    block_length,
    create_store,
    import_zarr,
)

# Kinds of the values of groups, but for sites that have a role.
_KINDS = {"posterior": "draw", "adaptation": "stochastic approximation"}

FLUSH_SECONDS = 5.0
"""The longest that a draw waits in memory for the next one to be written with it."""


class TraceFile:
    """
    A store of draws in a Zarr folder.

    Draws are collected in memory, up to about 16 MiB, and written when that is full, or with the
    first draw 5 seconds or more after the last write. What has been written survives a kill of the
    process at any moment; it is not forced to the disk, so a power failure may lose the latest.

    Readers see whole draws only: the draw axis has the length of the longest chain. Where another
    chain is shorter, floating-point numbers are NaN, and integers and bools, which have no such
    value, are undefined. The attribute ``finished_draws`` has the length of every chain.

    :param path: of the folder, made with the first draw.
    :param int chains: number of chains.
    :param int draws: of a chain, for which there is room.
    :param dims: for each site the plate of every axis of its value, None where there is none. Other
        axes, and those that another variable has with a different length, are
        ``<site>_dim_0`` and so on.
    :param roles: kind of the values of every site, ``"draw"`` or ``"stochastic approximation"``.
        It becomes the attribute ``kind`` of the variable, as in :func:`~pyro_aeb.to_arviz`. None
        if all are draws.
    :param summaries: kinds of the group ``adaptation``, by default stochastic approximation.
    :param attrs: attributes of the group ``posterior``, such as settings of the run.
    :param bool resume: continue the trace at this path, if there is one: a draw that it holds is
        overwritten, and those after it no longer count.
    :raises FileExistsError: if there is something at ``path``, and ``resume`` is False.
    :raises ImportError: if the zarr library is missing.
    :raises ValueError: if ``resume`` is True and the trace is damaged, or of another number of
        chains, or if the folder holds something else.
    """

    def __init__(
        self,
        path: str | Path,
        chains: int,
        draws: int,
        dims: Mapping[str, Sequence[str | None]] | None = None,
        roles: Mapping[str, str] | None = None,
        attrs: Mapping[str, Any] | None = None,
        resume: bool = False,
        summaries: Mapping[str, str] | None = None,
    ) -> None:
        import_zarr()
        self.path = Path(path)
        self._dims = dict(dims or {})
        self._roles = dict(roles or {})
        self._kinds = {**(summaries or {}), **self._roles}
        self._settings = dict(attrs or {})
        self._chains = chains
        self._draws = draws
        self._store: ZarrStore | None = None
        self._blocks: dict[tuple[int, ...], _Block] = {}
        self._flushed_at = time.monotonic()
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not resume:
            raise FileExistsError(
                f"{str(self.path)!r} exists: choose another path, remove it, or pass resume=True "
                "to continue the trace that it holds"
            )
        self._store = ZarrStore(self.path)
        if len(self._store.finished) != chains:
            raise ValueError(
                f"the trace {str(self.path)!r} has {len(self._store.finished)} chains, expected "
                f"{chains}: pass the number of the run, or choose another path"
            )
        self.grow(draws)

    @property
    def finished(self) -> tuple[int, ...]:
        """Number of draws of every chain in the file."""
        return tuple(self._store.finished) if self._store else (0,) * self._chains

    def write(self, chain: int | None, draw: int, record: Record) -> None:
        """
        Write a draw. One that exists is overwritten, and those after it are dropped.

        :param chain: number of the chain, or None for all: every value then has a leading axis of
            chains.
        :param int draw: number of the draw, at most one more than that of the last.
        :param record: group to name to value. Values in ``bfloat16``, which NumPy lacks, are kept
            in ``float32``.
        :raises IndexError: if there is no room for such a draw.
        :raises ValueError: if names and shapes are not those of the first draw, if a dtype is of
            another kind, or if the draws before this one are missing.
        """
        chains = tuple(range(self._chains)) if chain is None else (chain,)
        if not (0 <= draw < self._draws and 0 <= chains[0] < self._chains):
            raise IndexError(
                f"draw {draw} of chain {chain}: there is room for {self._draws} draws of "
                f"{self._chains} chains; make more by grow()"
            )
        record = {group: variables for group, variables in record.items() if variables}
        values = map_draws(lambda x: as_array(x if chain is None else x[None]), record)
        layout = map_draws(lambda x: (x.dtype, x.shape[1:]), values)
        store = self._store or self._create(layout)
        _check_layout(layout, store.layout)
        block = self._block(store, chains, draw)
        block.add(values)
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()
        elif block.is_full:
            _write_block(block, store)

    def flush(self) -> None:
        """Write all draws in memory to the file, where readers see them."""
        if self._store is not None:
            for block in self._blocks.values():
                _write_block(block, self._store)
        self._flushed_at = time.monotonic()

    def read(self) -> StoredDraws:
        """
        Read all finished draws, group to name to tensor of shape (chains, draws, ...), with as many
        draws as the longest chain has; see the class for those of shorter ones.

        :raises ValueError: if the file is damaged.
        """
        self.flush()
        return {} if self._store is None else map_draws(torch.from_numpy, self._store.read())

    def grow(self, draws: int) -> None:
        """Make room for ``draws`` draws of every chain; it never shrinks."""
        self._draws = max(self._draws, draws)
        if self._store is not None:
            self._draws = max(self._draws, self._store.draws)
            if self._draws > self._store.draws:
                self._store.grow(self._draws)

    def close(self) -> None:
        """Write all draws in memory to the file."""
        self.flush()

    def _create(self, layout: DrawLayout) -> ZarrStore:
        """Make a new store for draws of a layout."""

        def variable(group: str, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Variable:
            room = np.broadcast_to(np.zeros((), dtype), (self._chains, self._draws, *shape))
            return Variable(name, room, self._kinds.get(name, _KINDS.get(group)))

        groups: Groups = {
            group: by_name(variable(group, name, *form) for name, form in variables.items())
            for group, variables in layout.items()
        }
        posterior = groups.get("posterior", {})
        axes = AxisNames(
            {**groups, "posterior": posterior}, self._roles or self._dims, self._dims, {}, {}
        )
        attributes = attributes_of_groups(posterior, self._settings)
        create_store(
            self.path,
            groups,
            axes,
            {group: attributes.get(group, attributes["sample_stats"]) for group in groups},
            block_length(layout, self._chains),
        )
        self._store = ZarrStore(self.path)
        return self._store

    def _block(self, store: ZarrStore, chains: tuple[int, ...], draw: int) -> _Block:
        """Return the block that a draw is next in; others of its chains are written."""
        for block in self._blocks.values():
            is_next = chains == block.chains and draw == block.next and not block.is_full
            if not is_next and not set(chains).isdisjoint(block.chains):
                _write_block(block, store)
        if chains not in self._blocks:
            self._blocks[chains] = _Block(chains, store.layout, len(store.finished))
        block = self._blocks[chains]
        if block.count:
            return block
        length = min(store.finished[chain] for chain in chains)
        if draw > length:
            raise ValueError(
                f"draw {draw} of chain {chains[0]} cannot follow the {length} draws that the "
                f"trace holds: write draw {length} first"
            )
        finished = [min(n, draw) if c in chains else n for c, n in enumerate(store.finished)]
        if finished != store.finished:
            store.publish(finished)
        block.start(draw)
        return block


class _Block:
    """
    Consecutive draws in memory, of one chain or of all together.

    :param chains: numbers of its chains.
    :param DrawLayout layout: of a draw.
    :param all_chains: number of chains of the trace, which may all have blocks.
    """

    def __init__(self, chains: tuple[int, ...], layout: DrawLayout, all_chains: int) -> None:
        self.chains = chains
        self._size = block_length(layout, all_chains)
        self._values = map_draws(
            lambda form: np.empty((len(chains), self._size, *form[1]), form[0]), layout
        )
        self.start(0)

    def start(self, draw: int) -> None:
        """Empty the block; its first draw will have this number."""
        self.first = self.next = draw

    @property
    def count(self) -> int:
        return self.next - self.first

    @property
    def is_full(self) -> bool:
        """Whether the last draw is at the end of a chunk."""
        return self.count > 0 and self.next % self._size == 0

    def add(self, values: Arrays) -> None:
        for group, variables in values.items():
            for name, value in variables.items():
                self._values[group][name][:, self.next % self._size] = value
        self.next += 1

    def read(self) -> Arrays:
        start = self.first % self._size
        return map_draws(lambda x: x[:, start : start + self.count], self._values)


def _write_block(block: _Block, store: ZarrStore) -> None:
    """Write the draws of a block and publish them. Until then the block keeps them."""
    if not block.count:
        return
    place = slice(block.chains[0], block.chains[-1] + 1), slice(block.first, block.next)
    for group, variables in block.read().items():
        for name, values in variables.items():
            store.arrays[group][name][place] = values
    store.publish([block.next if c in block.chains else n for c, n in enumerate(store.finished)])
    block.start(block.next)


def open_trace(path: str | Path, chains: Sequence[int] | None = None) -> Any:
    """
    Open a trace of :class:`TraceFile` for ArviZ, also while it is written: as many draws of every
    chain as all of them have. Values are read from the file when they are used.

    Example::

        trace = open_trace("run.zarr")
        az.summary(trace, var_names=["beta"])

    :param path: of the folder.
    :param chains: numbers of chains; None for all that have started. While chains run one after
        another, ``range(n)`` with the number of complete ones leaves out the running one.
    :return: ``arviz.InferenceData`` with ArviZ 0.x, :class:`xarray.DataTree` with ArviZ 1.x.
    :raises FileNotFoundError: if there is no such folder.
    :raises ImportError: if the zarr library is missing.
    :raises ValueError: if the folder holds something else than a trace, or a damaged one; also
        when values are used whose file is damaged.
    """
    import xarray  # on use: it takes as long as Pyro

    import_zarr()
    metadata = read_metadata(Path(path))
    finished = metadata[".zattrs"][FINISHED]
    check_chunks(Path(path), metadata, finished)
    if chains is None:
        chains = [chain for chain, draws in enumerate(finished) if draws]
    place = {
        "chain": list(chains),
        "draw": slice(min((finished[chain] for chain in chains), default=0)),
    }
    groups = [key.split("/")[0] for key in metadata if key.endswith("/.zgroup")]
    options: Any = {"engine": "zarr", "consolidated": True}
    try:
        return to_container(
            {g: xarray.open_dataset(str(path), group=g, **options).isel(place) for g in groups}
        )
    except (ValueError, RuntimeError, LookupError, OSError) as error:
        raise ValueError(
            f"the trace {str(path)!r} is damaged: {type(error).__name__}: {error}"
        ) from error


def _check_layout(layout: DrawLayout, expected: DrawLayout) -> None:
    """
    :raises ValueError: if a draw does not fit into the arrays of the file.
    """
    if layout == expected:
        return
    given, stored = (
        {
            f"{group}: {n}": form
            for group, variables in forms.items()
            for n, form in variables.items()
        }
        for forms in (layout, expected)
    )
    if given.keys() != stored.keys():
        raise ValueError(
            f"the draw has {shorten(sorted(given.keys() - stored.keys()))} too many and lacks "
            f"{shorten(sorted(stored.keys() - given.keys()))}: all draws of a trace have the names "
            "of the first"
        )
    for name, (dtype, shape) in given.items():
        stored_dtype, stored_shape = stored[name]
        if shape != stored_shape or not np.can_cast(dtype, stored_dtype, "same_kind"):
            raise ValueError(
                f"{name!r} is {dtype} of shape {shape}, expected {stored_dtype} of shape "
                f"{stored_shape}, as in the first draw of the trace"
            )
