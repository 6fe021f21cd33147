# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Trees of tuples, lists and mappings, taken apart into their tensors and put together again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
"""Types whose values a tree's key has."""


def write_collector(example: Any) -> Callable[[Any], list[Tensor]]:
    """Write the function that lists the tensors of a tree as :func:`take_apart` does, but fast."""

    def places(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, Tensor):
            yield path
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                yield from places(item, f"{path}[{i}]")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from places(item, f"{path}[{name!r}]")

    collector: Callable[[Any], list[Tensor]] = eval(
        f"lambda v: [{', '.join(places(example, 'v'))}]"
    )
    return collector


def write_constructor(example: Any) -> Callable[[Sequence[Tensor]], Any]:
    """Write the function that makes a tree of a list of tensors as :func:`put_together` does."""
    names: dict[str, Any] = {}
    numbers = count()

    def name_of(value: Any) -> str:
        names[name := f"c{len(names)}"] = value
        return name

    def write(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"t[{next(numbers)}]"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{n!r}: {write(item)}' for n, item in value.items())}}}"
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            items = ", ".join(map(write, value))
            if hasattr(value, "_fields"):
                return f"{name_of(type(value))}({items})"
            return f"[{items}]" if isinstance(value, list) else f"({items},)"
        return name_of(value)

    constructor: Callable[[Sequence[Tensor]], Any] = eval(f"lambda t: {write(example)}", names)
    return constructor


def take_apart(value: Any, tensors: list[Tensor]) -> Hashable:
    """
    Return a hashable key of what compiled code depends on: dtype, device, shape and stride of
    tensors, the value of plain objects, the identity of others. Tensors in tuples, lists and
    mappings are appended to ``tensors``.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.dtype, value.device, value.shape, value.stride()
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple([(n, take_apart(item, tensors)) for n, item in value.items()])
    if isinstance(value, (tuple, list)):
        return type(value), tuple([take_apart(item, tensors) for item in value])
    return type(value), id(value)


def put_together(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the value with other tensors in place of those that :func:`take_apart` finds."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {name: put_together(item, tensors) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[put_together(item, tensors) for item in value])
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)([put_together(item, tensors) for item in value])
    return value


def equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    return take_apart(one, []) == take_apart(other, []) and torch.equal(one, other)
