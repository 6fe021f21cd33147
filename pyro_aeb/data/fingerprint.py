# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Fingerprints of a run's data, compared when it is resumed and between ranks."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pyro_aeb.data.arguments import Arguments, named_numbers
from pyro_aeb.data.contents import Leaf, is_plain, walk
from pyro_aeb.data.loaders import length

LIMIT = 2**30
"""Bytes of an array inside an object, above which its shape alone is compared."""

OPAQUE = "which cannot be compared"

Fingerprint = list[tuple[str, str]]
"""Names and descriptions of arguments."""


def fingerprint(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], contents: bool = True
) -> Fingerprint:
    """
    Describe every argument: a tensor or array by dtype, shape and CRC, which is the same on all
    machines; a DataLoader by its sizes and data; a number or string by its value.

    :param bool contents: whether arrays inside containers are described, too, and all that is
        inside data frames, objects and DataLoaders. Checkpoints of version 0.1 do not have them.
    """
    entries = []
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, DataLoader):
            entries.append((repr(name), _loader(value)))
        leaves = walk(repr(name), value)
        entries += [
            (leaf.name, _describe(leaf))
            for leaf in leaves
            if contents or _is_of_0_1(leaf, leaf.value is value)
        ]
    return entries


def holds_objects(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether there are data inside objects, which a run may change."""
    return any(leaf.inside for value in (*args, *kwargs.values()) for leaf in walk("", value))


def warn_of_opaque(data: Fingerprint) -> None:
    """
    Warn of arguments that cannot be compared.

    :warns UserWarning: if there are any.
    """
    opaque = [pair for pair in data if pair[1].endswith(OPAQUE)]
    if opaque:
        name, description = opaque[0]
        more = f" (nor can {len(opaque) - 1} more)" if len(opaque) > 1 else ""
        warnings.warn(
            f"argument {name} is {description} with that of a later run{more}: other data would "
            "not be noticed. Give the same data when you call run() again, or pass them as "
            "tensors, arrays, data frames or dataclasses",
            stacklevel=5,
        )


def _is_of_0_1(leaf: Leaf, alone: bool) -> bool:
    """
    Whether checkpoints of version 0.1 describe a leaf.

    :param bool alone: whether it is an argument.
    """
    if leaf.inside or isinstance(leaf.value, torch.Tensor):
        return not leaf.inside
    plain = leaf.value is None or isinstance(leaf.value, (bool, int, float, str))
    return alone and (
        plain or isinstance(leaf.value, np.ndarray) and not leaf.value.dtype.hasobject
    )


def _describe(leaf: Leaf) -> str:
    value = leaf.value
    if isinstance(value, torch.Tensor):
        crc = "" if leaf.inside and value.nbytes > LIMIT else f", CRC {_crc(value):08x}"
        return f"{value.dtype} of shape {tuple(value.shape)}{crc}"
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        crc = f", CRC {zlib.crc32(repr(value.ravel().tolist()).encode()):08x}"
        return f"objects of shape {value.shape}{crc}"
    if isinstance(value, np.ndarray):
        rows = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        crc = "" if leaf.inside and value.nbytes > LIMIT else f", CRC {zlib.crc32(rows.data):08x}"
        return f"{value.dtype} of shape {value.shape}{crc}"
    if isinstance(value, (list, tuple)):
        return (
            f"a {type(value).__name__} of {len(value)}, CRC {zlib.crc32(repr(value).encode()):08x}"
        )
    return repr(value) if is_plain(value) else f"a {type(value).__name__}, {OPAQUE}"


def check_same(before: Sequence[tuple[str, str]], now: Fingerprint) -> None:
    """
    Check that a run is resumed with the arguments it began with.

    :raises ValueError: if it is not.
    """
    saved, given = dict(before), dict(now)
    for name in {**saved, **given}:
        if saved.get(name) != given.get(name):
            raise ValueError(
                f"argument {name} is {given.get(name, 'missing')}, but the run began with "
                f"{saved.get(name, 'none')}: resume a run with the arguments it began with. For "
                "other data make another MCMC object"
            )


def _crc(tensor: torch.Tensor) -> int:
    """Return the CRC of a tensor's bytes."""
    rows = tensor.detach().resolve_conj().resolve_neg().to_dense().cpu().contiguous().reshape(-1)
    return zlib.crc32(rows.view(torch.uint8).numpy().data)


def _loader(loader: DataLoader) -> str:
    size = length(loader.dataset)
    count = "uncounted" if size is None else size
    return f"a DataLoader of {count} data in batches of {loader.batch_size}"


def check_same_on_all_ranks(descriptions: list[Mapping[str, Any]]) -> None:
    """
    Check that all ranks have the same options and data.

    :raises ValueError: if they differ.
    """
    first = descriptions[0]
    for rank, other in enumerate(descriptions):
        for name in {**first, **other}:
            if other.get(name) != first.get(name):
                raise ValueError(
                    f"{name} is {other.get(name)} on rank {rank} and {first.get(name)} on rank 0, "
                    "expected the same on all; give every rank the same options and data (data "
                    "made at random: with the same seed)"
                )


def describe_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """
    Describe every tensor among a model's arguments, for a comparison between ranks. Descriptions do
    not depend on the order in which a machine adds numbers.
    """
    return {
        f"argument {name}": f"{t.dtype} of shape {tuple(t.shape)}, absolute sum {_absolute_sum(t)}"
        for name, t in named_numbers(Arguments(args, kwargs))
    }


def _absolute_sum(tensor: torch.Tensor) -> str:
    return f"{float(tensor.detach().abs().sum(dtype=torch.float64)):.6g}"
