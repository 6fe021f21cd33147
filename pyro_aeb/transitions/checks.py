# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of transitions' arguments."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

from pyro_aeb.schedules import check_numbers


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
