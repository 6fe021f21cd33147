# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The states of transitions that move with another one, their ``inner``.

Such a state has the fields of the inner transition's, under their names and ``position`` first, and
then its own. So whatever reads states by their fields (pruning, checkpoints, statistics) reads
these.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from torch import Tensor


def joined(name: str, inner: Any, held: tuple[str, ...] = (), **own: Tensor) -> Any:
    """
    A state made of an inner transition's and further fields: a ``NamedTuple``.

    :param str name: of its class.
    :param inner: the inner transition's state.
    :param held: the fields of its own where pruning holds weights at zero.
    :param own: the fields of its own.
    """
    kind: Any = type(inner)
    return _class(name, kind, tuple(own), held)(*inner, *own.values())


def inner_state(state: Any) -> Any:
    """The inner transition's state in one that :func:`joined` has made."""
    kind = type(state).inner
    return kind(*state[: len(kind._fields)])


@cache
def _class(name: str, inner: Any, own: tuple[str, ...], held: tuple[str, ...]) -> Any:
    fields: Any = namedtuple(name, (*inner._fields, *own))  # type: ignore[misc]

    def reduce(state: Any) -> Any:  # pickle finds no such class in a module
        return _made, (name, inner, own, held, tuple(state))

    members = {"inner": inner, "held": held_of(inner) + held, "__reduce__": reduce}
    return type(name, (fields,), {**members, "__slots__": ()})


def held_of(inner: Any) -> tuple[str, ...]:
    """The fields of a state, beside its position, where pruning holds weights at zero."""
    held: tuple[str, ...] = getattr(inner, "held", ("momentum",))
    return tuple(name for name in held if name in inner._fields)


def _made(
    name: str, inner: Any, own: tuple[str, ...], held: tuple[str, ...], values: tuple[Any, ...]
) -> Any:
    return _class(name, inner, own, held)(*values)
