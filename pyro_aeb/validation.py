# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of arguments, shared by everything that has options."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor


def check_count(owner: str, what: str, **counts: Any) -> None:
    """
    :param str owner: what the arguments are of, for the error message.
    :param str what: what is counted, for the error message.
    :param counts: by name.
    :raises ValueError: if one is no integer of at least 1.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(
                f"{owner}: {name} is {count!r}, expected how many {what}, an integer of at least 1"
            )


def check_positive(owner: str, advice: str, **numbers: Any) -> None:
    """
    :param str owner: what the arguments are of, for the error message.
    :param str advice: what they mean, for the error message.
    :param numbers: by name.
    :raises TypeError: if one is no number.
    :raises ValueError: if one is not a finite number above 0.
    """
    check_numbers(owner, **numbers)
    for name, number in numbers.items():
        if not 0.0 < float(number) < math.inf:
            raise ValueError(f"{owner}: {name} is {number}, expected a finite number > 0; {advice}")


def check_inner(owner: str, inner: Any) -> None:
    """
    :param str owner: the transition that moves with another one, for the error message.
    :param inner: that one.
    :raises TypeError: if it does not move by the gradient that it is given.
    """
    if isinstance(inner, type) or not callable(getattr(inner, "step", None)):
        raise TypeError(
            f"{owner}: inner is {inner!r}, expected a transition that moves by the gradient it is "
            "given, such as SGLD(1e-5) or SGHMC(1e-6)"
        )


def positive(name: str, value: Any) -> float:
    """
    A positive number, checked.

    :raises TypeError: if it is no number.
    :raises ValueError: if it is not positive and finite.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, expected a number > 0")
    if not 0.0 < float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a finite number > 0")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """
    A bool, checked.

    :raises TypeError: if it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return value


def check_names(name: str, value: Any) -> None:
    """
    :raises TypeError: if an option is neither None nor a list of names.
    """
    if isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected a list of names, e.g. [{value!r}]")
    if value is not None and not (
        isinstance(value, Collection)
        and not isinstance(value, (np.ndarray, Tensor))
        and all(isinstance(own, str) for own in value)
    ):
        raise TypeError(f"{name} is {value!r}, expected a list of names of sites, or None")


def check_switch(name: str, value: Any) -> None:
    """
    :raises TypeError: if an option is no bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")


def check_numbers(owner: str, **numbers: Any) -> None:
    """
    Checks arguments that must be numbers, before they are compared with any.

    :param str owner: what they are arguments of, for the error message.
    :param numbers: by name.
    :raises TypeError: if one is something else.
    :raises ValueError: if one is beyond the range of a float.
    """
    for name, value in numbers.items():
        if not isinstance(value, Real):
            raise TypeError(f"{owner}: {name} is {value!r}, expected a number")
        _as_float(f"{owner}: {name}", value)


def _as_float(what: str, value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{what} is beyond the range of a float, expected a number up to 1.8e308"
        ) from None


def is_number(value: Any) -> bool:
    """Whether a schedule has given one number in the range of a float, or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except OverflowError:
        return False
