# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The data inside arguments: nested tuples, lists and mappings, dataclasses, data frames, objects with
tensors in them, and the dataset of a DataLoader.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

DEPTH = 8
"""Levels of objects within objects that are searched."""

LOADED = ("dataset", "data", "tensors", "batches")
"""Attributes of an iterable object in which its data are sought: others may be its state."""

_NO_DATA = (torch.nn.Module, torch.Generator, np.random.Generator, type)
_ATOMS = (
    *(bool, int, float, complex, str, bytes, enum.Enum, np.generic, torch.dtype, torch.device),
    *(Decimal, Fraction, date, time, timedelta, PurePath, range, slice),
)
_REPR: Any = object.__repr__


class Leaf(NamedTuple):
    """
    A tensor, an array, a number or string, a list of them, or an object that cannot be searched.

    :param str name: its place, such as ``0.table['y']``.
    :param bool inside: whether it is in an object, rather than in tuples, lists and mappings alone.
    """

    name: str
    value: Any
    inside: bool = False


def walk(name: str, value: Any) -> Iterator[Leaf]:
    """
    Yield all that an argument holds.

    :param str name: of the argument.
    """
    return _walk(name, value, False, ())


def _walk(name: str, value: Any, inside: bool, outer: tuple[int, ...]) -> Iterator[Leaf]:
    """:param outer: identities of the objects that the value is in."""
    if isinstance(value, Tensor):
        yield Leaf(name, value, inside)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(f"{name}[{key!r}]", item, inside, outer)
    elif isinstance(value, (tuple, list)) and not is_plain(value):
        for i, item in enumerate(value):
            yield from _walk(f"{name}[{i}]", item, inside, outer)
    elif isinstance(value, np.ndarray) and _holds_containers(value):
        yield from _walk(name, value.ravel().tolist(), True, outer)
    elif is_plain(value) or isinstance(value, np.ndarray):
        yield Leaf(name, value, inside)
    elif id(value) not in outer and len(outer) < DEPTH:
        parts = _parts(value)
        if parts is None:
            yield Leaf(name, value, inside)
        for place, part in parts or ():
            yield from _walk(f"{name}{place}", part, True, (*outer, id(value)))


def is_plain(value: Any) -> bool:
    """Whether a value is a number or string, or nested lists of them."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, _ATOMS)


def _holds_containers(array: Any) -> bool:
    """Whether the elements of an array are containers, or objects that their repr does not tell."""
    containers = (Tensor, np.ndarray, tuple, list, Mapping)
    return array.dtype.hasobject and any(
        isinstance(item, containers) or type(item).__repr__ is _REPR
        for item in array.ravel().tolist()
    )


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """Return what an object holds, and where; None if it cannot be searched."""
    if isinstance(value, _NO_DATA) or callable(value):
        return []
    if isinstance(value, DataLoader):
        return [(".dataset", value.dataset)]
    columns = getattr(value, "column_names", getattr(value, "columns", None))
    if isinstance(columns, Iterable) and hasattr(value, "__getitem__"):  # a data frame
        return [(f"[{column!r}]", np.asarray(value[column])) for column in columns]
    if hasattr(value, "__array__"):
        return [("", np.asarray(value))]
    if dataclasses.is_dataclass(value):
        names: list[str] = [field.name for field in dataclasses.fields(value)]
        return [(f".{name}", getattr(value, name, None)) for name in names] or None
    slots = getattr(type(value), "__slots__", ())
    names = [*getattr(value, "__dict__", ()), *([slots] if isinstance(slots, str) else slots)]
    if hasattr(value, "__iter__"):
        names = [name for name in names if name in LOADED]
    fields = {name: getattr(value, name, None) for name in names}
    # Numbers may be counters, and strings paths: they are not the data.
    return [(f".{n}", item) for n, item in fields.items() if not _is_setting(item)] or None


def _is_setting(value: Any) -> bool:
    """Whether an attribute of an object is a number, a string, or strings in a list."""
    if isinstance(value, (list, tuple)):
        return is_plain(value) and not any(map(_is_number, value))
    return value is None or isinstance(value, _ATOMS)


def _is_number(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_number, value))
    return isinstance(value, (bool, int, float, complex, np.generic))


def tensor_fields(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that hold tensors, by name; empty for all else."""
    if isinstance(value, (Tensor, np.ndarray, DataLoader, *_ATOMS)):
        return {}
    return {
        place[1:]: part
        for place, part in _parts(value) or ()
        if place[:1] == "." and any(isinstance(leaf.value, Tensor) for leaf in walk("", part))
    }
