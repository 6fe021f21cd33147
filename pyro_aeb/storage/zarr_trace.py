# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Draws in a Zarr store, written as they come and readable by xarray and ArviZ meanwhile.

A store has the groups of the records, such as ``posterior`` and ``sample_stats``. Arrays are
(chain, draw, ...) with xarray's dimension names. How they reach the disk is in
``pyro_aeb/growing_zarr.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.errors import listed
from pyro_aeb.storage.xarray_variables import (
    AxisNames,
    Groups,
    Variable,
    as_array,
    attributes_of_groups,
    by_name,
)
from pyro_aeb.storage.zarr_metadata import FINISHED, check_chunks, published
from pyro_aeb.storage.zarr_store import (
    Arrays,
    GrowingZarr,
    Rows,
    block_rows,
    create,
    import_zarr,
    selected,
)

# What the values of a group are, but for those that have a role.
_KINDS = {"posterior": "draw", "adaptation": "stochastic approximation"}

FLUSH_SECONDS = 5.0
"""The longest that a draw waits in memory for the next one to be written with it."""


class TraceFile:
    """
    A store of draws in a folder of Zarr's.

    Draws are collected in memory, about 16 MiB, and written when these are full, or at the first
    draw that comes 5 seconds or more after all were last written. What has been written is safe
    from a kill of the process at any moment; it is not forced to the disk, so that a power failure
    may take the latest.

    Readers see whole draws only: the draw axis has the length of the longest chain. Where another
    chain has not come so far, floating-point numbers are NaN; integers and bools, which have no
    such value, mean nothing there. The attribute ``finished_draws`` says how far every chain is.

    :param path: The folder, made with the first draw.
    :param int chains: Number of chains.
    :param int draws: Draws a chain that there is room for.
    :param dims: For each site the plate of every axis of its value, None where there is none. Other
        axes, and those that another variable has with a different length, are
        ``<site>_dim_0`` and so on.
    :param roles: What the values of every site are, ``"draw"`` or ``"stochastic approximation"``.
        It becomes the attribute ``kind`` of the variable, as in :func:`~pyro_aeb.to_arviz`. None
        if all are draws.
    :param attrs: Attributes of the group ``posterior``, such as settings of the run.
    :param bool resume: Go on with the trace of this path, if there is one: a draw that it holds is
        overwritten, and those after it no longer count.
    :raises FileExistsError: If there is something at ``path``, and ``resume`` is False.
    :raises ImportError: If the zarr library is missing.
    :raises ValueError: If ``resume`` is True and the trace is damaged, or of another number of
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
    ) -> None:
        import_zarr()
        self.path = Path(path)
        self._dims = dict(dims or {})
        self._roles = dict(roles or {})
        self._settings = dict(attrs or {})
        self._chains = chains
        self._draws = draws
        self._files: GrowingZarr | None = None
        self._blocks: dict[tuple[int, ...], _Block] = {}
        self._flushed_at = time.monotonic()
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not resume:
            raise FileExistsError(
                f"{str(self.path)!r} exists: choose another path, remove it, or pass resume=True "
                "to go on with the trace that it holds"
            )
        self._files = GrowingZarr(self.path)
        if len(self._files.finished) != chains:
            raise ValueError(
                f"the trace {str(self.path)!r} has {len(self._files.finished)} chains, expected "
                f"{chains}: pass the number that the run began with, or choose another path"
            )
        self.grow(draws)

    @property
    def finished(self) -> tuple[int, ...]:
        """How many draws of every chain are in the file."""
        return tuple(self._files.finished) if self._files else (0,) * self._chains

    def write(
        self, chain: int | None, draw: int, record: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """
        Takes one draw. Writing one that is there overwrites it and drops those after it.

        :param chain: Index of the chain, or None for all at once: every value then has a leading
            axis of chains.
        :param int draw: Index of the draw, at most one more than that of the last.
        :param record: Group to name to value. Values in ``bfloat16``, which NumPy lacks, are kept
            in ``float32``.
        :raises IndexError: If there is no room for such a draw.
        :raises ValueError: If names and shapes are not those of the first draw, if a dtype is of
            another kind, or if the draws before this one are missing.
        """
        chains = tuple(range(self._chains)) if chain is None else (chain,)
        if not (0 <= draw < self._draws and 0 <= chains[0] < self._chains):
            raise IndexError(
                f"draw {draw} of chain {chain}: there is room for {self._draws} draws of "
                f"{self._chains} chains; make more by grow()"
            )
        values = {
            group: {
                name: as_array(value if chain is None else value[None])
                for name, value in variables.items()
            }
            for group, variables in record.items()
            if variables
        }
        rows = {
            group: {name: (value.dtype, value.shape[1:]) for name, value in variables.items()}
            for group, variables in values.items()
        }
        files = self._files or self._create(rows)
        _check(rows, files.rows)
        block = self._block(files, chains, draw)
        block.add(values)
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()
        elif block.is_full:
            _move(block, files)

    def flush(self) -> None:
        """Writes what is in memory: it is safe from then on, and readers see it."""
        if self._files is not None:
            for block in self._blocks.values():
                _move(block, self._files)
        self._flushed_at = time.monotonic()

    def read(self) -> dict[str, dict[str, Tensor]]:
        """
        Finished draws, group to name to tensor of shape (chains, draws, ...), read from the file as
        a whole. There are as many draws as the longest chain has; where another has not come so
        far, floating-point numbers are NaN, and others mean nothing.

        :raises ValueError: If the file is damaged.
        """
        self.flush()
        if self._files is None:
            return {}
        return {
            group: {name: torch.from_numpy(value) for name, value in variables.items()}
            for group, variables in self._files.read().items()
        }

    def grow(self, draws: int) -> None:
        """Makes room for so many draws a chain in all; there is never less than before."""
        self._draws = max(self._draws, draws)
        if self._files is not None:
            self._draws = max(self._draws, self._files.draws)
            if self._draws > self._files.draws:
                self._files.grow(self._draws)

    def close(self) -> None:
        """Writes what is in memory."""
        self.flush()

    def _create(self, rows: Rows) -> GrowingZarr:
        """A new store for draws like this."""

        def variable(group: str, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Variable:
            room = np.broadcast_to(np.zeros((), dtype), (self._chains, self._draws, *shape))
            return Variable(name, room, self._roles.get(name, _KINDS.get(group)))

        groups: Groups = {
            group: by_name(variable(group, name, *row) for name, row in variables.items())
            for group, variables in rows.items()
        }
        posterior = groups.get("posterior", {})
        axes = AxisNames(
            {**groups, "posterior": posterior}, self._roles or self._dims, self._dims, {}, {}
        )
        attributes = attributes_of_groups(posterior, self._settings)
        create(
            self.path,
            groups,
            axes,
            {group: attributes.get(group, attributes["sample_stats"]) for group in groups},
            block_rows(rows, self._chains),
        )
        self._files = GrowingZarr(self.path)
        return self._files

    def _block(self, files: GrowingZarr, chains: tuple[int, ...], draw: int) -> _Block:
        """The block of which this draw is the next."""
        for block in self._blocks.values():
            goes_on = chains == block.chains and draw == block.next and not block.is_full
            if not goes_on and not set(chains).isdisjoint(block.chains):
                _move(block, files)
        if chains not in self._blocks:
            self._blocks[chains] = _Block(chains, files.rows, len(files.finished))
        block = self._blocks[chains]
        if block.count:
            return block
        reached = min(files.finished[chain] for chain in chains)
        if draw > reached:
            raise ValueError(
                f"draw {draw} of chain {chains[0]} cannot follow the {reached} draws that the "
                f"trace holds: write draw {reached} first"
            )
        finished = [min(n, draw) if c in chains else n for c, n in enumerate(files.finished)]
        if finished != files.finished:
            files.publish(finished)
        block.start(draw)
        return block


class _Block:
    """
    Consecutive draws of one chain, or of all together, on their way to the file.

    :param chains: which.
    :param all_chains: how many there are, which may all have blocks.
    """

    def __init__(self, chains: tuple[int, ...], rows: Rows, all_chains: int) -> None:
        self.chains = chains
        self._size = block_rows(rows, all_chains)
        self._values = {
            group: {
                name: np.empty((len(chains), self._size, *shape), dtype)
                for name, (dtype, shape) in variables.items()
            }
            for group, variables in rows.items()
        }
        self.start(0)

    def start(self, draw: int) -> None:
        """Empties the block; its first draw will be this one."""
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

    def filled(self) -> Arrays:
        start = self.first % self._size
        rows = slice(start, start + self.count)
        return {
            group: {name: value[:, rows] for name, value in variables.items()}
            for group, variables in self._values.items()
        }


def _move(block: _Block, files: GrowingZarr) -> None:
    """Writes the draws of a block and shows them to readers. Until then the block keeps them."""
    if not block.count:
        return
    place = slice(block.chains[0], block.chains[-1] + 1), slice(block.first, block.next)
    for group, variables in block.filled().items():
        for name, values in variables.items():
            files.arrays[group][name][place] = values
    files.publish([block.next if c in block.chains else n for c, n in enumerate(files.finished)])
    block.start(block.next)


def open_trace(path: str | Path, chains: Sequence[int] | None = None) -> Any:
    """
    The finished draws of a trace that :class:`TraceFile` writes or has written, for ArviZ: as many
    of every chain as all of them have. Values stay in the file until they are used.

    Example::

        trace = open_trace("run.zarr")
        az.summary(trace, var_names=["beta"])

    :param path: The folder.
    :param chains: Which chains; None for all that have begun. While chains run one after another,
        ``range(n)`` with the number of whole ones leaves out the one under way.
    :return: ``arviz.InferenceData`` with ArviZ 0.x, :class:`xarray.DataTree` with ArviZ 1.x.
    :raises FileNotFoundError: If there is no such folder.
    :raises ImportError: If the zarr library is missing.
    :raises ValueError: If the folder holds something else than a trace, or a damaged one; also
        when values are used whose file is damaged.
    """
    # Imported on use: together they take as long as Pyro.
    import arviz
    import xarray

    import_zarr()
    metadata = published(Path(path))
    finished = metadata[".zattrs"][FINISHED]
    check_chunks(Path(path), metadata, finished)
    chosen, draws = selected(finished, chains)
    groups = [key.split("/")[0] for key in metadata if key.endswith("/.zgroup")]
    try:
        datasets = {
            group: xarray.open_dataset(
                str(path), engine="zarr", group=group, consolidated=True
            ).isel(chain=chosen, draw=slice(draws))
            for group in groups
        }
    except (ValueError, RuntimeError, LookupError, OSError) as error:
        raise ValueError(
            f"the trace {str(path)!r} is damaged: {type(error).__name__}: {error}"
        ) from error
    # ArviZ 1.x answers arviz.InferenceData too, with a warning and another class.
    inference_data: Any = vars(arviz).get("InferenceData")
    return inference_data(**datasets) if inference_data else xarray.DataTree.from_dict(datasets)


def _check(found: Rows, expected: Rows) -> None:
    """
    :raises ValueError: if a draw does not fit into the rows of the file.
    """
    if found == expected:
        return
    one, other = (
        {
            f"{group}: {name}": row
            for group, variables in rows.items()
            for name, row in variables.items()
        }
        for rows in (found, expected)
    )
    if one.keys() != other.keys():
        raise ValueError(
            f"the draw has {listed(sorted(one.keys() - other.keys()))} too many and lacks "
            f"{listed(sorted(other.keys() - one.keys()))}: all draws of a trace have the names of "
            "the first"
        )
    for name, (dtype, shape) in one.items():
        kept, room = other[name]
        if shape != room or not np.can_cast(dtype, kept, "same_kind"):
            raise ValueError(
                f"{name!r} is {dtype} of shape {shape}, expected {kept} of shape {room}, as in the "
                "first draw of the trace"
            )
