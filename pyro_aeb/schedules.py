# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Schedules: numbers that depend on the step.

A schedule maps the step ``k = 1, 2, ...`` (counted from the start of the run, warm-up included) to
a float. Step sizes, inverse temperatures and stochastic-approximation weights are all schedules; a
plain number stands for :class:`Constant`. Schedules are frozen dataclasses: they pickle, compare
and print as the call that made them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_aeb.validation import check_fields, is_number, number, set_fields


@runtime_checkable
class Schedule(Protocol):
    """A function from the step ``k = 1, 2, ...`` to a float."""

    def __call__(self, k: int) -> float: ...


def as_schedule(value: Schedule | float, name: str) -> Schedule:
    """
    Return a schedule; a number becomes a :class:`Constant`.

    :param value: a number or a schedule.
    :param str name: the option's name, for the error message.
    :raises TypeError: if ``value`` is neither.
    :raises ValueError: if it is a number that is not finite.
    """
    if isinstance(value, Real):
        return Constant(number(name, value, "(-inf, inf)"))
    if callable(value):
        return value
    raise TypeError(
        f"{name} is {value!r}, expected a number or a schedule such as Polynomial(1e-3, power=1/3)"
    )


STEP_SIZES = (math.ulp(0.0), 1e38, "a finite number > 0, at most 1e38")
INVERSE_TEMPERATURES = (1e-38, sys.float_info.max, "a finite number > 0, at least 1e-38")
"""The least and the largest number, in the range of single precision, and the range in words."""


def as_step_size(value: Schedule | float) -> Schedule:
    """Return a schedule of step sizes. Numbers out of range are refused at once."""
    return _check_first("step_size", value, STEP_SIZES)


def as_inverse_temperature(value: Schedule | float) -> Schedule:
    """Return a schedule of inverse temperatures, likewise."""
    return _check_first("inverse_temperature", value, INVERSE_TEMPERATURES)


def _check_first(name: str, value: Schedule | float, within: tuple[float, float, str]) -> Schedule:
    schedule = as_schedule(value, name)
    if isinstance(schedule, (Constant, Piecewise)):  # all numbers have the sign of the first
        number_at(name, schedule, 1, *within)
    return schedule


def _plain(name: str, value: Any, within: str = "", advice: str = "") -> int | float:
    """Return a checked number, integers as Python's, so that a schedule prints as it was made."""
    real = number(name, value, within, advice)
    return int(value) if isinstance(value, Integral) else real


_finite = partial(_plain, within="(-inf, inf)")
_positive = partial(_plain, within="(0, inf)")
_not_negative = partial(_plain, within="[0, inf)")
_at_least_one = partial(_plain, within="[1, inf]")


def number_at(
    name: str, schedule: Schedule, k: int, low: float, high: float, expected: str
) -> float:
    """
    Return a schedule's number at step k, checked.

    :param str name: what the schedule is for, for the error message.
    :param Schedule schedule: step to number.
    :param int k: the step.
    :param float low: the smallest number allowed.
    :param float high: the largest number allowed.
    :param str expected: the range in words, for the error message.
    :raises ValueError: if it is no number, or out of range.
    """
    value = schedule(k)
    if type(value) is float and low <= value <= high:
        return value
    if is_number(value) and low <= value <= high:
        return float(value)
    raise ValueError(
        f"{name} is {value} at step {k}, expected {expected}; it comes from {schedule!r}"
    )


def numbers_at(
    name: str, schedule: Schedule, steps: range, low: float, high: float, expected: str
) -> list[float]:
    """
    Return a schedule's numbers at several steps, those of :func:`number_at`, up to the first step
    at which it fails.

    :raises Exception: at the first of the steps.
    """
    if type(schedule) is Constant:
        return [number_at(name, schedule, steps[0], low, high, expected)] * len(steps)
    try:
        values = [schedule(k) for k in steps]
        if all([type(value) is float and low <= value <= high for value in values]):
            return values
    except Exception:  # of the schedule's own, at one of the steps
        pass
    values = [number_at(name, schedule, steps[0], low, high, expected)]
    try:
        for k in steps[1:]:
            values.append(number_at(name, schedule, k, low, high, expected))
    except Exception:  # comes again when this step is the first
        pass
    return values


@dataclass(frozen=True)
class Constant:
    """
    The same value at every step.

    :param float value: the value.
    """

    value: float

    def __post_init__(self) -> None:
        check_fields(self, value=_finite)

    def __call__(self, k: int) -> float:
        return self.value


@dataclass(frozen=True)
class Polynomial:
    r"""
    Polynomial decay, :math:`\mathrm{scale} / (\mathrm{offset} + k)^{\mathrm{power}}`.

    As a stochastic-approximation weight it satisfies :math:`\sum_k \omega_k = \infty` and
    :math:`\omega_k \to 0` for powers in (0, 1], and :math:`\sum_k \omega_k^2 < \infty` for powers
    above 1/2.

    :param float scale: the numerator, positive.
    :param float offset: added to the step, at least 0; delays the decay.
    :param float power: the exponent, at least 0.
    """

    scale: float
    offset: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, scale=_positive, offset=_not_negative, power=_not_negative)

    def __call__(self, k: int) -> float:
        try:
            return self.scale / (float(self.offset) + k) ** float(self.power)
        except OverflowError:  # the divisor exceeds the range of a float
            return 0.0


@dataclass(frozen=True)
class Geometric:
    r"""
    Geometric growth or decay, :math:`\mathrm{initial} \cdot \mathrm{rate}^{\lfloor (k-1) /
    \mathrm{every} \rfloor}`. The annealing of the "A-" variants is
    ``Geometric(tau0, rate, every=steps_per_epoch)``.

    :param float initial: the value at the first step, positive.
    :param float rate: the factor, positive; above 1 grows.
    :param int every: the steps between multiplications, e.g. those of an epoch.
    """

    initial: float
    rate: float
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self, initial=_positive, rate=_positive, every=_at_least_one)

    def __call__(self, k: int) -> float:
        try:
            value = self.initial * float(self.rate) ** ((k - 1) // self.every)
        except OverflowError:
            value = math.inf
        if math.isinf(value):
            raise ValueError(
                f"{self!r} exceeds the range of a float at step {k}; "
                "use a rate closer to 1 or a larger `every`"
            )
        return value


@dataclass(frozen=True)
class Piecewise:
    """
    A value that is multiplied by factors at given steps.

    ``Piecewise(2e-9, {35_000: 0.1, 45_000: 0.1})`` is 2e-9 up to step 34,999, 2e-10 from step
    35,000 and 2e-11 from step 45,000.

    :param float initial: the value before the first factor.
    :param factors: step to factor; each factor applies from its step on.
    """

    initial: float
    factors: Mapping[int, float]

    def __post_init__(self) -> None:
        check_fields(self, initial=_finite)
        if not isinstance(self.factors, Mapping):
            raise TypeError(
                f"Piecewise: factors is {self.factors!r}, expected a mapping of steps to factors, "
                "such as {1000: 0.1}"
            )
        steps = [_plain("Piecewise: a step of factors", step) for step in self.factors]
        factors = [_positive("Piecewise: a factor", f) for f in self.factors.values()]
        set_fields(self, factors=dict(sorted(zip(steps, factors, strict=True))))

    def __hash__(self) -> int:
        return hash((self.initial, tuple(self.factors.items())))

    def __call__(self, k: int) -> float:
        return self.initial * math.prod(float(f) for step, f in self.factors.items() if k >= step)


@dataclass(frozen=True)
class Cyclical:
    r"""
    Cosine cycles of Zhang, Li, Zhang, Chen and Wilson, "Cyclical stochastic gradient MCMC for
    Bayesian deep learning" (ICLR 2020), equation (1): each cycle starts at ``initial`` and falls
    towards zero, :math:`\frac{\mathrm{initial}}{2}(1 + \cos(\pi\, ((k-1) \bmod
    \mathrm{period}) / \mathrm{period}))`.

    :param float initial: the value at the start of every cycle, positive.
    :param int period: steps in a cycle.
    """

    initial: float
    period: int

    def __post_init__(self) -> None:
        check_fields(self, initial=_positive, period=_at_least_one)

    def __call__(self, k: int) -> float:
        phase = ((k - 1) % self.period) / self.period
        return 0.5 * self.initial * (1.0 + math.cos(math.pi * phase))


@dataclass(frozen=True)
class PruningSchedule:
    r"""
    A sparsity that rises to a target, equation (9): :math:`s_k = S (1 - D^{k/U})`.

    :param float target: S, the share of zero weights in the end, in [0, 1].
    :param float damping: D in [0, 1); the distance to the target shrinks by this factor a period.
        With 0 the target applies from the first step on.
    :param float period: U, steps in a period, positive.
    """

    target: float
    damping: float = 0.99
    period: float = 50

    def __post_init__(self) -> None:
        check_fields(
            self,
            target=partial(_plain, within="[0, 1]", advice="90 % is 0.9"),
            damping=partial(_plain, within="[0, 1)"),
            period=_positive,
        )

    def __call__(self, k: int) -> float:
        """Equation (9)."""
        return self.target * (1.0 - self.damping ** (k / self.period))


def square_root(number: float) -> float:
    """Return the root of a number, or of a tensor, as numbers of a compiled step are."""
    root: Any = getattr(number, "sqrt", None)
    return math.sqrt(number) if root is None else root()


def add_scaled(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    """Return x + factor y."""
    if isinstance(factor, Tensor):
        return torch.addcmul(x, y, factor)
    return torch.add(x, y, alpha=factor)


def add_scaled_(x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
    """Add factor y to x in place, and return x."""
    return x.addcmul_(y, factor) if isinstance(factor, Tensor) else x.add_(y, alpha=factor)
