# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Checks of options. Each returns the value, converted to Python's own type, or raises an error that
says what was given, what was expected, and what to do. Names may say whose option it is:
``"SGHMC: friction"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np
from torch import Tensor


def number(name: str, value: Any, within: str = "", advice: str = "") -> float:
    """
    Return a real number.

    :param str name: of the option.
    :param value: of the option.
    :param str within: the interval of valid numbers, such as ``"(0, 1]"``; by default all, infinity
        and NaN included.
    :param str advice: what to do if the number is outside of the interval.
    :raises TypeError: if it is no number.
    :raises ValueError: if it is outside of the interval, or beyond the range of a float.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, expected a number")
    try:
        real = float(value)
    except OverflowError:
        raise ValueError(
            f"{name} is beyond the range of a float, expected a number up to 1.8e308"
        ) from None
    if within and not _contains(within, real):
        expected = f"{name} is {value!r}, expected {_describe(within)}"
        raise ValueError(f"{expected}; {advice}" if advice else expected)
    return real


def positive(name: str, value: Any, advice: str = "") -> float:
    """Return a finite number above 0; see :func:`number`."""
    return number(name, value, "(0, inf)", advice)


def _contains(interval: str, value: float) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below


def _describe(interval: str) -> str:
    if not interval.endswith(" inf)"):
        return f"a number in {interval}"
    low = interval[1:-1].split(",")[0]
    if low == "-inf":
        return "a finite number"
    return f"a finite number {'>' if interval[0] == '(' else '>='} {low}"


def count(name: str, value: Any, meaning: str = "", least: int = 1) -> int:
    """
    Return an integer of at least ``least``.

    :param str meaning: what is counted, for the error message.
    :raises ValueError: if it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        expected = f"{name} is {value!r}, expected an integer of at least {least}"
        raise ValueError(f"{expected}, {meaning}" if meaning else expected)
    return int(value)


def flag(name: str, value: Any) -> bool:
    """
    Return a bool.

    :raises TypeError: if it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return value


def choice(name: str, value: Any, options: Any, *meanings: str, optional: bool = False) -> Any:
    """
    Return one of the strings of a ``Literal``.

    :param options: the ``Literal``.
    :param meanings: of all options, for the error message.
    :param bool optional: whether None is an option, too.
    :raises ValueError: if it is none of them.
    """
    known = get_args(options)
    if (isinstance(value, str) and value in known) or (optional and value is None):
        return value
    described = [repr(option) for option in known]
    if meanings:
        described = [f"{a} ({b})" for a, b in zip(described, meanings, strict=True)]
    *first, last = ["None", *described] if optional else described
    raise ValueError(f"{name} is {value!r}, expected {', '.join(first)} or {last}")


def names(name: str, value: Any) -> tuple[str, ...] | None:
    """
    Return a list of names as a tuple, and None as it is.

    :raises TypeError: if it is neither.
    """
    if isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected a list of names, e.g. [{value!r}]")
    if value is None:
        return None
    if (
        not isinstance(value, Collection)
        or isinstance(value, (np.ndarray, Tensor))
        or not all(isinstance(item, str) for item in value)
    ):
        raise TypeError(f"{name} is {value!r}, expected a list of names of sites, or None")
    return tuple(value)


def gradient_transition(name: str, value: Any) -> Any:
    """
    Return a transition that moves by the gradient that it is given.

    :raises TypeError: if it is none.
    """
    if isinstance(value, type) or not callable(getattr(value, "step", None)):
        raise TypeError(
            f"{name} is {value!r}, expected a transition that moves by the gradient it is given, "
            "such as SGLD(1e-5) or SGHMC(1e-6)"
        )
    return value


def set_fields(options: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, in its ``__init__`` or ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def check_fields(options: Any, **checks: Callable[[str, Any], Any]) -> None:
    """
    Replace fields of a frozen dataclass by their checked values, in its ``__post_init__``.

    :param checks: field to one of the checks above, as a function of name and value.
    """
    owner = type(options).__name__
    for field, check in checks.items():
        set_fields(options, **{field: check(f"{owner}: {field}", getattr(options, field))})


def is_number(value: Any) -> bool:
    """Return whether a schedule's value is one finite number, or a tensor of one number."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except OverflowError:
        return False
