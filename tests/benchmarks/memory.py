# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a chain holds in memory between two steps."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

LEAVES = (str, bytes, int, float, complex, type, types.ModuleType, type(None))


def tensors(root: Any) -> Iterator[Tensor]:
    """Every tensor within reach of an object's attributes, items and closures."""
    seen: dict[int, Any] = {}
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            yield value
        stack += _parts(value)


def bytes_of(found: Iterable[Tensor], but: Iterable[Tensor] = ()) -> int:
    """
    Bytes of the storages of tensors, each storage once.

    :param but: tensors whose storages do not count.
    """
    left_out = {tensor.untyped_storage().data_ptr() for tensor in but}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    return sum(size for pointer, size in storages.items() if pointer not in left_out)


def _parts(value: Any) -> list[Any]:
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts += value
    elif isinstance(value, types.MethodType):
        parts += [value.__self__, value.__func__]
    elif isinstance(value, types.FunctionType):
        parts += [cell.cell_contents for cell in value.__closure__ or ()]
    parts += list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        parts += [getattr(value, name) for name in names if hasattr(value, name)]
    return parts
