# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Validate Zarr metadata, which may come from an untrusted source.

The JSON files of a store name the codecs of its arrays, and pickle can be one of them, which would
run code from the store when it is read. Here only arrays of numbers are accepted, with one of the
two compressors that Zarr itself chooses. The consolidated metadata have a checksum, and those of
the arrays must be the same.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pyro_aeb.errors import shorten

FINISHED = "finished_draws"
"""The attribute of the store and its groups with the number of draws of each chain."""

COMPRESSORS = ("zstd", "blosc")

_NODES = (".zgroup", ".zarray", ".zattrs")

Metadata = dict[str, dict[str, Any]]
"""Nodes by the name of their file, such as ``posterior/beta/.zarray``."""


def consolidate(nodes: Metadata) -> str:
    """Return the text of ``.zmetadata``, from which readers get all nodes at once."""
    content = {"zarr_consolidated_format": 1, "metadata": nodes, "checksum": _checksum(nodes)}
    return json.dumps(content)


def read_metadata(path: Path) -> Metadata:
    """
    Read the consolidated metadata, which readers use.

    :raises FileNotFoundError: if there is no such folder.
    :raises ValueError: if it holds something else than a trace, or a damaged one.
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


def read_nodes(path: Path, keys: Iterable[str]) -> Metadata:
    """
    Read the metadata of single arrays and groups, with room for all draws.

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


def check_same(path: Path, nodes: Metadata, published: Metadata) -> None:
    """
    Check that single nodes are those of the consolidated metadata, but for the number of draws.

    :raises ValueError: if not.
    """
    for key, node in published.items():
        if _fixed_fields(nodes[key]) != _fixed_fields(node):
            raise _damaged(path, f"its file {key!r} does not say the same as .zmetadata")


def check_chunks(path: Path, nodes: Metadata, finished: Sequence[int]) -> None:
    """
    Check that the files with finished draws exist: Zarr takes a missing one for missing data.

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
        raise _damaged(path, f"it lacks the files {shorten(missing)}, which hold finished draws")


def _chunks(name: str, node: dict[str, Any], finished: Sequence[int]) -> Iterator[str]:
    """Yield the files of an array's finished draws, or of all its labels of chains or draws."""
    shape = node["shape"]
    if len(shape) == 1:  # a chunk of a single label 0 may be left out: 0 is what is missing
        first = 1 if node["chunks"] == [1] else 0
        yield from (f"{name}/{i}" for i in range(first, math.ceil(shape[0] / node["chunks"][0])))
    if len(shape) < 2 or 0 in shape[2:]:
        return
    span, length = node["chunks"][:2]
    for first in range(0, len(finished), span):
        for chunk in range(math.ceil(max(finished[first : first + span]) / length)):
            yield f"{name}/{first // span}.{chunk}" + ".0" * (len(shape) - 2)


def _check_nodes(path: Path, nodes: Metadata) -> None:
    """
    Check that there is nothing but groups and arrays of numbers.

    :raises ValueError: if not.
    """
    for key, node in nodes.items():
        place = PurePosixPath(key)
        if place.name not in _NODES or place.is_absolute() or ".." in place.parts:
            raise _damaged(path, f"its metadata name {key!r}")
        if (path / place.parent / "zarr.json").exists():  # readers would use it instead
            raise _damaged(path, f"there is a file zarr.json of another format beside {key!r}")
        if not isinstance(node, dict):
            raise _damaged(path, f"{key!r} is {node!r}, expected a mapping")
        if place.name == ".zarray" and (problem := _problem_of(node)):
            raise _damaged(path, f"{key!r} has {problem}, and no trace has such arrays")


def _problem_of(array: dict[str, Any]) -> str | None:
    """Return what is wrong with the metadata of an array, None if nothing is."""
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


def _fixed_fields(node: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a node that are fixed for the life of a trace."""
    return {name: value for name, value in node.items() if name not in ("shape", FINISHED)}


def _checksum(nodes: Metadata) -> int:
    return zlib.crc32(json.dumps(nodes, sort_keys=True).encode())


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(f"the trace {str(path)!r} is damaged: {how}")
