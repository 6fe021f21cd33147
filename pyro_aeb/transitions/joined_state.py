# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
States of transitions that step with an ``inner`` transition: the fields of its state, ``position``
first, and then further ones. Pruning, checkpoints and statistics, which read states by their
fields, thus need not know which transition is inside.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from torch import Tensor


def join_state(name: str, inner: Any, held: tuple[str, ...] = (), **fields: Tensor) -> Any:
    """
    Return an inner transition's state with further fields, a ``NamedTuple``.

    :param str name: of its class.
    :param inner: the inner transition's state.
    :param held: those of the further fields in which pruning holds weights at zero.
    :param fields: the further fields.
    """
    kind: Any = type(inner)
    return _state_class(name, kind, tuple(fields), held)(*inner, *fields.values())


def inner_state(state: Any) -> Any:
    """Return the inner transition's state in one of :func:`join_state`."""
    kind = type(state).inner
    return kind(*state[: len(kind._fields)])


def held_fields(state: Any) -> tuple[str, ...]:
    """Return the fields, beside ``position``, in which pruning holds weights at zero."""
    held: tuple[str, ...] = getattr(state, "held", ("momentum",))
    return tuple(name for name in held if name in state._fields)


@cache
def _state_class(name: str, inner: Any, fields: tuple[str, ...], held: tuple[str, ...]) -> Any:
    base: Any = namedtuple(name, (*inner._fields, *fields))  # type: ignore[misc]

    def reduce(state: Any) -> Any:  # pickle finds no such class in a module
        return _unpickle, (name, inner, fields, held, tuple(state))

    members = {"inner": inner, "held": held_fields(inner) + held, "__reduce__": reduce}
    return type(name, (base,), {**members, "__slots__": ()})


def _unpickle(
    name: str, inner: Any, fields: tuple[str, ...], held: tuple[str, ...], values: tuple[Any, ...]
) -> Any:
    return _state_class(name, inner, fields, held)(*values)
