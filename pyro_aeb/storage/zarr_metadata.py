# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a trace says of its arrays, read with suspicion.

A Zarr store names, in files of JSON, the codecs that its numbers go through, and pickle can be one
of them: whoever reads a store from elsewhere may run code from it. Here only numbers pass, by the
two compressors that Zarr itself chooses. The metadata that readers go by have a checksum, and those
of the single arrays must say the same.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pyro_aeb.errors import listed

FINISHED = "finished_draws"
"""The attribute of the store and its groups that says how many draws each chain has."""

COMPRESSORS = ("zstd", "blosc")

_NODES = (".zgroup", ".zarray", ".zattrs")

Metadata = dict[str, dict[str, Any]]
"""By the name of the file that they are in, ``posterior/beta/.zarray``."""


def consolidated(nodes: Metadata) -> str:
    """The text of ``.zmetadata``, from which readers have all nodes at once."""
    content = {"zarr_consolidated_format": 1, "metadata": nodes, "checksum": _checksum(nodes)}
    return json.dumps(content)


def published(path: Path) -> Metadata:
    """
    The metadata that readers see.

    :raises FileNotFoundError: if there is no such folder.
    :raises ValueError: if it holds something else than a trace, or one that is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no trace {str(path)!r}; a run makes it when it writes its first draws"
        )
    try:
        content = json.loads((path / ".zmetadata").read_text(encoding="utf-8"))
        nodes: Metadata = content["metadata"]
        finished = nodes[".zattrs"][FINISHED]
        if not all(isinstance(draws, int) and draws >= 0 for draws in finished):
            raise ValueError(f"{FINISHED} is {finished!r}")
        if content.get("checksum", _checksum(nodes)) != _checksum(nodes):
            raise ValueError("the checksum does not fit")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is no trace that pyro_aeb wrote, or a damaged one: expected a folder "
            f"whose file .zmetadata has the attribute {FINISHED!r} ({error!r})"
        ) from error
    _check_nodes(path, nodes)
    return nodes


def own_nodes(path: Path, keys: Iterable[str]) -> Metadata:
    """
    The metadata of every array and group by itself, with room for all draws.

    :raises ValueError: if a file is missing or damaged.
    """
    nodes: Metadata = {}
    for key in sorted(keys):
        try:
            nodes[key] = json.loads((path / key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path, f"cannot read its file {key!r} ({error!r})") from error
    _check_nodes(path, nodes)
    return nodes


def check_same(path: Path, own: Metadata, seen: Metadata) -> None:
    """
    That arrays and groups by themselves are those that readers see, which may be shorter.

    :raises ValueError: if not.
    """
    for key, node in seen.items():
        if _lasting(own[key]) != _lasting(node):
            raise _damaged(path, f"its file {key!r} does not say the same as .zmetadata")


def check_chunks(path: Path, nodes: Metadata, finished: Sequence[int]) -> None:
    """
    That the files with finished draws are there: Zarr takes a missing one for missing data.

    :param nodes: of all arrays.
    :param finished: how many draws each chain has.
    :raises ValueError: if one is missing.
    """
    missing = [
        file
        for key, node in nodes.items()
        if key.endswith("/.zarray")
        for file in _chunks(key.removesuffix("/.zarray"), node, finished)
        if not (path / file).is_file()
    ]
    if missing:
        raise _damaged(path, f"it lacks the files {listed(missing)}, which hold finished draws")


def _chunks(name: str, node: dict[str, Any], finished: Sequence[int]) -> Iterator[str]:
    """The files in which an array has finished draws, or all its labels of chains or draws."""
    shape = node["shape"]
    if len(shape) == 1:  # a chunk of a single label 0 may be left out: 0 is what is missing
        first = 1 if node["chunks"] == [1] else 0
        yield from (f"{name}/{i}" for i in range(first, math.ceil(shape[0] / node["chunks"][0])))
    if len(shape) < 2 or 0 in shape[2:]:
        return
    span, rows = node["chunks"][:2]
    for first in range(0, len(finished), span):
        for row in range(math.ceil(max(finished[first : first + span]) / rows)):
            yield f"{name}/{first // span}.{row}" + ".0" * (len(shape) - 2)


def _check_nodes(path: Path, nodes: Metadata) -> None:
    """
    That there is nothing but groups and arrays of numbers.

    :raises ValueError: if there is.
    """
    for key, node in nodes.items():
        place = PurePosixPath(key)
        if place.name not in _NODES or place.is_absolute() or ".." in place.parts:
            raise _damaged(path, f"its metadata name {key!r}")
        if (path / place.parent / "zarr.json").exists():  # would go before what was looked at here
            raise _damaged(path, f"there is a file zarr.json of another format beside {key!r}")
        if not isinstance(node, dict):
            raise _damaged(path, f"{key!r} is {node!r}, expected a mapping")
        if place.name == ".zarray" and (found := _unexpected(node)):
            raise _damaged(path, f"{key!r} has {found}, and no trace has such arrays")


def _unexpected(array: dict[str, Any]) -> str | None:
    """What there is in the metadata of an array that a trace has not."""
    compressor, filters, dtype = (array.get(k) for k in ("compressor", "filters", "dtype"))
    if filters:
        return f"filters {filters!r}, expected none"
    if not isinstance(compressor, dict) or compressor.get("id") not in COMPRESSORS:
        return f"a compressor {compressor!r}, expected one of {list(COMPRESSORS)}"
    if not (isinstance(dtype, str) and dtype[:1] in "<>|" and dtype[1:2] in "biuf"):
        return f"a dtype {dtype!r}, expected numbers"
    shape: Any = array.get("shape")
    chunks: Any = array.get("chunks")
    if not (_are_sizes(shape, 0) and _are_sizes(chunks, 1) and len(shape) == len(chunks)):
        return f"a shape {shape!r} in chunks {chunks!r}, expected sizes"
    return None


def _are_sizes(value: Any, least: int) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and n >= least for n in value)


def _lasting(node: dict[str, Any]) -> dict[str, Any]:
    """What of a node does not change as draws come."""
    return {name: value for name, value in node.items() if name not in ("shape", FINISHED)}


def _checksum(nodes: Metadata) -> int:
    return zlib.crc32(json.dumps(nodes, sort_keys=True).encode())


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(f"the trace {str(path)!r} is damaged: {how}")
