# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The files of a trace: a Zarr store in which readers see finished draws only.

Every array has room for all draws from the start. Readers of Zarr format 2 use the consolidated
metadata, the file ``.zmetadata``. Here these give the draw axis its current length, and are
replaced as a whole after the chunks are written. So all variables have the same length at any
moment, wherever the writer was killed. A chunk with finished draws may be rewritten with more of
them: Zarr writes another file and renames it, so that the old or the new chunk is there.

Format 2 is the one that Zarr 2 and 3 both write, and that xarray and ArviZ read with either.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pyro_aeb.storage.recorder import map_draws
from pyro_aeb.storage.xarray_variables import SAMPLE_DIMS, AxisNames, Groups
from pyro_aeb.storage.zarr_metadata import (
    FINISHED,
    Metadata,
    check_chunks,
    check_same,
    consolidate,
    read_metadata,
    read_nodes,
)

BLOCK_BYTES = 2**24
"""Approximate size of the draws in memory, and the largest chunk of several draws."""

SMALL_CHUNK_BYTES = 2**18
"""Approximate size of a chunk of several blocks or chains, which is rewritten as it fills."""

Arrays = dict[str, dict[str, np.ndarray]]
"""Group to site or statistic to values."""

DrawLayout = dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]]
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


def block_length(layout: DrawLayout, chains: int) -> int:
    """Return the number of draws that are written at a time, if ``chains`` chains have blocks."""
    draw = sum(
        dtype.itemsize * math.prod(shape)
        for variables in layout.values()
        for dtype, shape in variables.values()
    )
    return max(BLOCK_BYTES // max(chains * draw, 1), 1)


def chunk_shape(shape: Sequence[int], itemsize: int, length: int) -> tuple[int, ...]:
    """
    Return the shape of chunks: whole blocks, one if it is large, and all chains if they are small.

    :param shape: of the array, (chains, draws, ...).
    :param int length: draws of a block.
    """
    chains, draws, *rest = shape
    block = length * itemsize * math.prod(rest)
    span = chains if chains * block <= SMALL_CHUNK_BYTES else 1
    blocks = max(SMALL_CHUNK_BYTES // max(span * block, 1), 1)
    return (span, min(length * blocks, draws), *(max(size, 1) for size in rest))


def create_store(
    path: Path, groups: Groups, axes: AxisNames, attributes: Mapping[str, Any], length: int
) -> None:
    """
    Make an empty store, which appears at its path in one piece.

    :param groups: the variables, whose values have room for all draws and are not read.
    :param attributes: of every group.
    :param int length: draws that are written at a time.
    """
    partial = path.with_name(path.name + ".partial")
    if partial.exists():  # left by a process that was killed here
        shutil.rmtree(partial)
    zarr, version = _zarr_and_version()
    root = zarr.open_group(str(partial), mode="w", **version)
    root.attrs.update({"creation_library": "pyro_aeb"})
    create = _ArrayMaker(partial)
    for group, variables in groups.items():
        root.create_group(group).attrs.update(attributes[group])
        for name, variable in variables.items():
            shape, dtype = variable.values.shape, variable.values.dtype
            create(
                f"{group}/{name}",
                shape,
                axes.names(variable),
                {**variable.attributes, "source": variable.source},
                dtype=dtype,
                chunks=chunk_shape(shape, dtype.itemsize, length),
                # xarray takes any other number for missing data, and integers to floats with it.
                fill_value=math.nan if dtype.kind == "f" else None,
            )
        for dim, size in zip(SAMPLE_DIMS, shape, strict=False):
            place = f"{group}/{dim}"
            create(place, [size], [dim], {}, dtype="i8", chunks=[size], fill_value=None)
            labels = zarr.open_array(store=str(partial), path=place, mode="r+", **version)
            labels[:] = np.arange(size)

    nodes = [file for kind in ("group", "array", "attrs") for file in partial.rglob(f".z{kind}")]
    keys = [file.relative_to(partial).as_posix() for file in nodes]
    _publish(partial, read_nodes(partial, keys), [0] * shape[0])
    if path.exists():  # an empty folder
        path.rmdir()
    partial.rename(path)


class _ArrayMaker:
    """Makes the arrays of a store. Zarr takes some 20 ms for one, so it makes each form once."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._forms: dict[str, str] = {}

    def __call__(
        self,
        name: str,
        shape: Sequence[int],
        dims: Sequence[str],
        attributes: Mapping[str, Any],
        **options: Any,
    ) -> None:
        zarr, version = _zarr_and_version()
        place, form = self._store / name, repr((tuple(shape), options))
        if form in self._forms:
            place.mkdir()
            (place / ".zarray").write_text(self._forms[form], encoding="utf-8")
        else:
            common = {"store": str(self._store), "compressor": _compressor(), **version}
            zarr.create(shape=tuple(shape), path=name, **options, **common)
            self._forms[form] = (place / ".zarray").read_text(encoding="utf-8")
        content = {"_ARRAY_DIMENSIONS": list(dims), **attributes}
        (place / ".zattrs").write_text(json.dumps(content), encoding="utf-8")


class ZarrStore:
    """
    The arrays of a store made by :func:`create_store`.

    :ivar arrays: group to site or statistic to Zarr array of shape (chains, draws, ...).
    :ivar layout: of one draw of one chain.
    :ivar finished: number of draws of each chain that readers see.
    :raises FileNotFoundError: if there is none.
    :raises ValueError: if there is something else, or if files are missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        published = read_metadata(path)
        self.finished: list[int] = list(published[".zattrs"][FINISHED])
        self._nodes = read_nodes(path, published)
        check_same(path, self._nodes, published)
        self.arrays: dict[str, dict[str, Any]] = {}
        self._labels: list[Any] = []
        zarr, version = _zarr_and_version()
        # A chunk is written even if there are only zeros in it, so that a missing one is a loss.
        setting = {"array.write_empty_chunks": True}
        with zarr.config.set(setting) if version else contextlib.nullcontext():
            for key in self._nodes:
                name, _, kind = key.rpartition("/")
                if kind != ".zarray":
                    continue
                array = zarr.open_array(store=str(path), path=name, mode="r+", **version)
                source = self._nodes[f"{name}/.zattrs"].get("source")
                if source is not None:
                    self.arrays.setdefault(name.split("/")[0], {})[source] = array
                elif name.endswith("/draw"):
                    self._labels.append(array)
        self.layout: DrawLayout = map_draws(lambda x: (x.dtype, x.shape[2:]), self.arrays)
        check_chunks(path, self._nodes, self.finished)

    @property
    def draws(self) -> int:
        """Number of draws of a chain for which there is room."""
        return min(labels.shape[0] for labels in self._labels)

    def publish(self, finished: Sequence[int]) -> None:
        """Show ``finished`` draws of every chain to readers; their chunks have been written."""
        _publish(self._path, self._nodes, finished)
        self.finished = list(finished)

    def grow(self, draws: int) -> None:
        """Make room for ``draws`` draws of a chain."""
        for variables in self.arrays.values():
            for array in variables.values():
                array.resize((array.shape[0], draws, *array.shape[2:]))
        for labels in self._labels:
            labels.resize((draws,))
            labels[:] = np.arange(draws)
        self._nodes = read_nodes(self._path, self._nodes)
        self.publish(self.finished)

    def read(self) -> Arrays:
        """
        Read all draws up to the last of the longest chain.

        :raises ValueError: if a chunk is missing or damaged.
        """
        check_chunks(self._path, self._nodes, self.finished)
        return map_draws(self._read_array, self.arrays)

    def _read_array(self, array: Any) -> np.ndarray:
        try:
            return np.asarray(array[:, : max(self.finished)])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"a chunk of {array.path!r} in {str(self._path)!r} cannot be read: the file is "
                f"damaged ({error})"
            ) from error


def _compressor() -> Any:
    """Return Zarr's own compressor, with a checksum: a changed byte is an error when it is read."""
    from numcodecs import Zstd

    return Zstd(level=0, checksum=True)


def _zarr_and_version() -> tuple[Any, dict[str, int]]:
    """Return the library and the argument for format 2; Zarr 2 writes that and takes none."""
    zarr = import_zarr()
    return zarr, {"zarr_format": 2} if int(zarr.__version__.split(".")[0]) >= 3 else {}


def _publish(path: Path, nodes: Metadata, finished: Sequence[int]) -> None:
    published: Metadata = {}
    for key, node in nodes.items():
        name, _, kind = key.rpartition("/")
        if kind == ".zarray":
            dims = nodes[f"{name}/.zattrs"]["_ARRAY_DIMENSIONS"]
            shape = [
                max(finished) if dim == "draw" else size
                for dim, size in zip(dims, node["shape"], strict=True)
            ]
            node = {**node, "shape": shape}
        elif kind == ".zattrs" and "/" not in name:
            node = {**node, FINISHED: list(finished)}
        published[key] = node
    partial = path / ".zmetadata.partial"
    partial.write_text(consolidate(published), encoding="utf-8")
    os.replace(partial, path / ".zmetadata")
