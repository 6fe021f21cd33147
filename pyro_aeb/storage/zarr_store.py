# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The files of a trace: a Zarr store in which readers see finished draws only.

Every array has room for all draws from the start. Readers of a Zarr store of format 2 go by its
consolidated metadata, the file ``.zmetadata``. Here these give the draw axis the length reached,
and are replaced in one piece once the chunks are there. So all variables have the same length
whenever someone looks, and wherever the writer was killed. A chunk with finished draws may be
written again, with more of them: Zarr writes a file of its own and renames it, so that the old
chunk or the new one is there.

Format 2 is the one that Zarr 2 and 3 both write, and that xarray and ArviZ read with either.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pyro_aeb.storage.xarray_variables import SAMPLE_DIMS, AxisNames, Groups
from pyro_aeb.storage.zarr_metadata import (
    FINISHED,
    Metadata,
    check_chunks,
    check_same,
    consolidated,
    own_nodes,
    published,
)

BLOCK_BYTES = 2**24
"""About how much waits in memory, and the most that a chunk of several draws holds."""

SMALL_CHUNK_BYTES = 2**18
"""About how large a chunk is that takes several blocks or chains, and is rewritten as it fills."""

Arrays = dict[str, dict[str, np.ndarray]]
"""Group to site or statistic to values."""

Rows = dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]]
"""Group to site or statistic to dtype and shape of one draw of one chain."""


def import_zarr() -> ModuleType:
    """
    :raises ImportError: if it is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "a trace in a file needs the zarr library, which is not installed: "
            "pip install pyro_aeb[zarr]"
        ) from error
    return zarr


def selected(finished: Sequence[int], chains: Iterable[int] | None) -> tuple[list[int], int]:
    """
    The chains asked for, or all that have begun, and how many draws all of these have finished.
    """
    begun = [chain for chain, draws in enumerate(finished) if draws]
    chosen = begun if chains is None else list(chains)
    return chosen, min((finished[chain] for chain in chosen), default=0)


def block_rows(rows: Rows, chains: int) -> int:
    """How many draws are written at a time, where so many chains wait in memory."""
    draw = sum(
        dtype.itemsize * math.prod(shape)
        for variables in rows.values()
        for dtype, shape in variables.values()
    )
    return max(BLOCK_BYTES // max(chains * draw, 1), 1)


def chunk_shape(shape: Sequence[int], itemsize: int, rows: int) -> tuple[int, ...]:
    """
    The chunks of an array (chains, draws, ...) written in blocks of so many rows: whole blocks, one
    if that is much, and all chains together if that is little.
    """
    chains, draws, *rest = shape
    block = rows * itemsize * math.prod(rest)
    span = chains if chains * block <= SMALL_CHUNK_BYTES else 1
    blocks = max(SMALL_CHUNK_BYTES // max(span * block, 1), 1)
    return (span, min(rows * blocks, draws), *(max(size, 1) for size in rest))


def create(
    path: Path, groups: Groups, axes: AxisNames, attributes: Mapping[str, Any], rows: int
) -> None:
    """
    Makes an empty store, which appears under its name in one piece.

    :param groups: The variables, whose values have room for all draws and are not looked at.
    :param attributes: Attributes of every group.
    :param rows: How many draws are written at a time.
    """
    partial = path.with_name(path.name + ".partial")
    if partial.exists():  # left by a process that was killed here
        shutil.rmtree(partial)
    # Without the format, Zarr 2 writes format 2 and knows no such argument.
    zarr = import_zarr()
    version = {"zarr_format": 2} if _is_zarr_3(zarr) else {}
    compressor = _compressor()
    root = zarr.open_group(str(partial), mode="w", **version)
    root.attrs.update({"creation_library": "pyro_aeb"})

    def array(name: str, shape: Sequence[int], dims: Sequence[str], **options: Any) -> Any:
        made = zarr.create(
            shape=tuple(shape),
            store=str(partial),
            path=name,
            compressor=compressor,
            **options,
            **version,
        )
        made.attrs.update({"_ARRAY_DIMENSIONS": list(dims)})
        return made

    for group, variables in groups.items():
        root.create_group(group).attrs.update(attributes[group])
        for name, variable in variables.items():
            shape, dtype = variable.values.shape, variable.values.dtype
            made = array(
                f"{group}/{name}",
                shape,
                axes.names(variable),
                dtype=dtype,
                chunks=chunk_shape(shape, dtype.itemsize, rows),
                # xarray takes any other number for missing data, and integers to floats with it.
                fill_value=math.nan if dtype.kind == "f" else None,
            )
            made.attrs.update({**variable.attributes, "source": variable.source})
        for dim, size in zip(SAMPLE_DIMS, shape, strict=False):
            labels = array(
                f"{group}/{dim}", [size], [dim], dtype="i8", chunks=[size], fill_value=None
            )
            labels[:] = np.arange(size)

    nodes = [
        file for file in partial.rglob(".z*") if file.name in (".zgroup", ".zarray", ".zattrs")
    ]
    keys = [file.relative_to(partial).as_posix() for file in nodes]
    _publish(partial, own_nodes(partial, keys), [0] * shape[0])
    if path.exists():  # an empty folder
        path.rmdir()
    partial.rename(path)


class GrowingZarr:
    """
    The arrays of a store made by :func:`create`.

    :ivar arrays: group to site or statistic to Zarr array of shape (chains, draws, ...).
    :ivar rows: what one draw of one chain holds.
    :ivar finished: how many draws each chain has, as readers see it.
    :raises FileNotFoundError: if there is none.
    :raises ValueError: if there is something else, or if files are missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        seen = published(path)
        self.finished: list[int] = list(seen[".zattrs"][FINISHED])
        self._nodes = own_nodes(path, seen)
        check_same(path, self._nodes, seen)
        self.arrays: dict[str, dict[str, Any]] = {}
        self._labels: list[Any] = []
        zarr = import_zarr()
        version = {"zarr_format": 2} if _is_zarr_3(zarr) else {}
        # A chunk is written even if there are only zeros in it, so that a missing one is a loss.
        setting = {"array.write_empty_chunks": True}
        with zarr.config.set(setting) if _is_zarr_3(zarr) else contextlib.nullcontext():
            for key in self._nodes:
                name, _, kind = key.rpartition("/")
                if kind != ".zarray":
                    continue
                group = name.split("/")[0]
                array = zarr.open_array(store=str(path), path=name, mode="r+", **version)
                source = self._nodes[f"{name}/.zattrs"].get("source")
                if source is not None:
                    self.arrays.setdefault(group, {})[source] = array
                elif name.endswith("/draw"):
                    self._labels.append(array)
        self.rows: Rows = {
            group: {source: (array.dtype, array.shape[2:]) for source, array in variables.items()}
            for group, variables in self.arrays.items()
        }
        check_chunks(path, self._nodes, self.finished)

    @property
    def draws(self) -> int:
        """How many draws a chain there is room for."""
        return min(labels.shape[0] for labels in self._labels)

    def publish(self, finished: Sequence[int]) -> None:
        """Shows so many draws of every chain to readers; their chunks have been written."""
        _publish(self._path, self._nodes, finished)
        self.finished = list(finished)

    def grow(self, draws: int) -> None:
        """Makes room for so many draws a chain."""
        for variables in self.arrays.values():
            for array in variables.values():
                array.resize((array.shape[0], draws, *array.shape[2:]))
        for labels in self._labels:
            labels.resize((draws,))
            labels[:] = np.arange(draws)
        self._nodes = own_nodes(self._path, self._nodes)
        self.publish(self.finished)

    def read(self) -> Arrays:
        """
        All draws up to the last of the longest chain.

        :raises ValueError: if a chunk is missing or damaged.
        """
        check_chunks(self._path, self._nodes, self.finished)
        return {
            group: {source: self._values(array) for source, array in variables.items()}
            for group, variables in self.arrays.items()
        }

    def _values(self, array: Any) -> np.ndarray:
        try:
            return np.asarray(array[:, : max(self.finished)])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"a chunk of {array.path!r} in {str(self._path)!r} cannot be read: the file is "
                f"damaged ({error})"
            ) from error


def _compressor() -> Any:
    """Zarr's own, with a checksum: a byte that has changed is an error when it is read."""
    from numcodecs import Zstd

    return Zstd(level=0, checksum=True)


def _is_zarr_3(zarr: ModuleType) -> bool:
    return int(zarr.__version__.split(".")[0]) >= 3


def _publish(path: Path, nodes: Metadata, finished: Sequence[int]) -> None:
    seen: Metadata = {}
    for key, node in nodes.items():
        name, _, kind = key.rpartition("/")
        if kind == ".zarray":
            dims = nodes[f"{name}/.zattrs"]["_ARRAY_DIMENSIONS"]
            shape = [
                max(finished) if d == "draw" else n
                for d, n in zip(dims, node["shape"], strict=True)
            ]
            node = {**node, "shape": shape}
        elif kind == ".zattrs" and "/" not in name:
            node = {**node, FINISHED: list(finished)}
        seen[key] = node
    partial = path / ".zmetadata.partial"
    partial.write_text(consolidated(seen), encoding="utf-8")
    os.replace(partial, path / ".zmetadata")
