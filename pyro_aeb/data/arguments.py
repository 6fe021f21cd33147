# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The arguments of a model, and operations on the tensors in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.data.contents import tensor_fields, walk
from pyro_aeb.errors import ModelError

_NUMBERS = tuple(np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8"))


class Arguments(NamedTuple):
    """The arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Batch(NamedTuple):
    """
    The data of one step.

    :param indices: of the plates that subsample, by plate name. For chains that step together,
        those of plates that take a part have a leading axis of chains.
    :param bool per_chain: whether tensors in the arguments have a leading axis of chains.
    """

    arguments: Arguments
    indices: Mapping[str, Tensor]
    per_chain: bool = False

    def of_chain(self, chain: int) -> Batch:
        """Return the batch of one of several chains."""
        indices = {n: i[chain] if i.dim() > 1 else i for n, i in self.indices.items()}

        def select(leaf: Any) -> Any:
            return leaf[chain] if isinstance(leaf, Tensor) else leaf

        arguments = map_leaves(select, self.arguments) if self.per_chain else self.arguments
        return Batch(arguments, indices)


def unpack(batch: Any, kwargs: Mapping[str, Any]) -> Arguments:
    """
    Return a DataLoader's batch as arguments: a tuple or list as positional ones, a mapping as
    keyword arguments, anything else as the only one.
    """
    if isinstance(batch, Mapping):
        return Arguments((), {**batch, **kwargs})
    args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    return Arguments(args, kwargs)


def map_leaves(
    function: Callable[..., Any],
    value: Any,
    *others: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    objects: bool = False,
) -> Any:
    """
    Apply a function to everything inside nested tuples, lists and mappings. Mappings become dicts;
    subclasses of tuple and list keep their class, which ``torch.utils._pytree`` takes for leaves.

    :param function: of a leaf, and of the leaves at the same place in ``others``.
    :param is_leaf: whether a tuple, list or mapping is a leaf; a ``torch.Size`` is one in any case.
    :param bool objects: whether the function is applied to the tensors inside objects, too, of
        which copies are made; without ``others``.
    :raises ValueError: if tuples or lists at the same place are of different lengths.
    """

    def visit(value: Any, *others: Any) -> Any:
        if isinstance(value, Tensor) or (is_leaf is not None and is_leaf(value)):
            return function(value, *others)
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            if others:
                items = [visit(*places) for places in zip(value, *others, strict=True)]
            else:  # faster
                items = [visit(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, Mapping):
            return {name: visit(item, *[o[name] for o in others]) for name, item in value.items()}
        if objects and (fields := tensor_fields(value)):
            changed = copy.copy(value)
            for name, item in fields.items():
                object.__setattr__(changed, name, visit(item))
            return changed
        return function(value, *others)

    return visit(value, *others)


def move_to_device(value: Any, device: torch.device) -> Any:
    """
    Move tensors, and other objects with a method ``to``, inside nested tuples, lists, mappings and
    objects to a device; without waiting for tensors.
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        return leaf.to(device) if _is_movable(leaf) else leaf

    return map_leaves(move, value, is_leaf=_is_movable, objects=True)


def _is_movable(value: Any) -> bool:
    return callable(getattr(value, "to", None))  # a PackedSequence, a batch of graphs


def stack(value: Any, *others: Any) -> Any:
    """
    Stack tensors inside nested tuples, lists and mappings; other leaves are the first's.

    :raises ModelError: if there are tensors inside other objects.
    """

    def stack_leaves(leaf: Any, *rest: Any) -> Any:
        if isinstance(leaf, Tensor):
            return torch.stack([leaf, *rest])
        if tensor_fields(leaf):
            raise ModelError(
                f"the batches hold tensors inside a {type(leaf).__name__}, and chains that step "
                "together need tuples, lists or dicts of tensors, whose axis of chains is known; "
                'give the loader a collate_fn that returns them, or use chain_method="sequential"'
            )
        return leaf

    return map_leaves(stack_leaves, value, *others)


def vmap_axes(value: Any) -> Any:
    """Return the ``in_dims`` of :func:`torch.vmap` that map the first axis of every tensor."""
    return map_leaves(lambda leaf: 0 if isinstance(leaf, Tensor) else None, value)


def named_tensors(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in the arguments, named by their place, such as ``0['x'][1]``."""
    for name, value in (*enumerate(arguments.args), *arguments.kwargs.items()):
        if isinstance(value, Tensor):  # at every step
            yield repr(name), value
            continue
        for leaf in walk(repr(name), value):
            if isinstance(leaf.value, Tensor):
                yield leaf.name, leaf.value


def named_numbers(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in the arguments, and arrays as tensors, named by their place."""
    for name, value in (*enumerate(arguments.args), *arguments.kwargs.items()):
        yield from numbers_in(repr(name), value)


def numbers_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in an argument, and arrays as tensors, named by their place."""
    for leaf in walk(name, value):
        if isinstance(leaf.value, Tensor):
            yield leaf.name, leaf.value
        elif isinstance(leaf.value, np.ndarray) and leaf.value.dtype in _NUMBERS:
            yield leaf.name, torch.from_numpy(leaf.value.copy())  # it may be read-only


def leading_lengths(arguments: Arguments) -> set[int]:
    """Return the lengths of the first axes of all tensors in the arguments."""
    return {len(tensor) for _, tensor in named_tensors(arguments) if tensor.dim()}
