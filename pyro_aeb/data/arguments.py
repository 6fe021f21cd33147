# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a model is called with: arguments, and what can be done to the tensors in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """
    The arguments of one call of the model.

    :param tuple args: positional.
    :param kwargs: by keyword.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Batch(NamedTuple):
    """
    The data of one step.

    :param Arguments arguments: of the model.
    :param indices: of the plates that subsample, by plate name. For chains that step together,
        those of plates that take a part have a leading axis of chains.
    :param bool per_chain: whether tensors in the arguments have a leading axis of chains.
    """

    arguments: Arguments
    indices: Mapping[str, Tensor]
    per_chain: bool = False


def unpacked(batch: Any, kwargs: Mapping[str, Any]) -> Arguments:
    """
    A DataLoader's batch as arguments: a tuple or list positional ones, a mapping keyword arguments,
    anything else the only one.

    :param batch: what the loader gave.
    :param kwargs: further keyword arguments.
    """
    if isinstance(batch, Mapping):
        return Arguments((), {**batch, **kwargs})
    args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    return Arguments(args, kwargs)


def moved(arguments: Arguments, device: torch.device) -> Arguments:
    """The arguments with all tensors in them on a device, moved without waiting."""
    return Arguments(_to(arguments.args, device), _to(arguments.kwargs, device))


def tensors_of(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in the arguments, named by their position, such as ``0['x'][1]``."""
    for name, value in (*enumerate(arguments.args), *arguments.kwargs.items()):
        yield from _tensors(repr(name), value)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}[{key!r}]", item)
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _tensors(f"{name}[{i}]", item)


def leading_lengths(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[int]:
    """The lengths of the first axes of the tensors in a batch."""
    return {len(t) for _, t in tensors_of(Arguments(args, kwargs)) if t.dim()}


def _to(value: Any, device: torch.device) -> Any:
    """
    Tensors inside tuples, lists and mappings, and objects that can move themselves, moved without
    waiting for tensors.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if callable(getattr(value, "to", None)):  # a PackedSequence, a batch of graphs
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _to(item, device) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_to(item, device) for item in value)
    return value


def stacked(value: Any, others: Sequence[Any]) -> Any:
    """Tensors inside tuples, lists and mappings stacked; other values must be the same in all."""
    if isinstance(value, Tensor):
        return torch.stack([value, *others])
    if isinstance(value, Mapping):
        return {name: stacked(item, [o[name] for o in others]) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = (stacked(item, [o[i] for o in others]) for i, item in enumerate(value))
        return type(value)(*parts)
    if isinstance(value, (tuple, list)):
        if any(len(other) != len(value) for other in others):
            raise ValueError("they hold different numbers of items")
        return type(value)(stacked(item, [o[i] for o in others]) for i, item in enumerate(value))
    return value


def axes(value: Any) -> Any:
    """For :func:`torch.vmap`: 0 for every tensor inside tuples, lists and mappings, else None."""
    if isinstance(value, Tensor):
        return 0
    if isinstance(value, Mapping):
        return {name: axes(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(axes(item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(axes(item) for item in value)
    return None
