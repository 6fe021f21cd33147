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
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

from pyro_aeb.validation import _as_float, check_numbers


@runtime_checkable
class Schedule(Protocol):
    """Anything that maps the step ``k = 1, 2, ...`` to a float."""

    def __call__(self, k: int) -> float: ...


def as_schedule(value: Schedule | float, name: str) -> Schedule:
    """
    Reads an argument that may be a number or a schedule.

    :param value: a number, which stands for :class:`Constant`, or a schedule.
    :param str name: the argument's name, for the error message.
    :raises TypeError: if ``value`` is neither.
    """
    if isinstance(value, Real):
        number = _as_float(name, value)
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}, expected a finite value or a schedule")
        return Constant(number)
    if callable(value):
        return value
    raise TypeError(
        f"{name} is {value!r}, expected a number or a schedule such as Polynomial(1e-3, power=1/3)"
    )


def _read_numbers(schedule: Any, *names: str) -> None:
    """Checks fields of a schedule that must be numbers, and makes NumPy's Python's."""
    for name in names:
        value = getattr(schedule, name)
        check_numbers(type(schedule).__name__, **{name: value})
        object.__setattr__(schedule, name, _plain(value))


def _plain(value: Any) -> int | float:
    return int(value) if isinstance(value, Integral) else float(value)


def _require(condition: bool, schedule: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{schedule!r}: expected {expected}")


@dataclass(frozen=True)
class Constant:
    """
    The same value at every step.

    :param float value: that value.
    """

    value: float

    def __post_init__(self) -> None:
        _read_numbers(self, "value")
        _require(math.isfinite(self.value), self, "a finite value")

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
        _read_numbers(self, "scale", "offset", "power")
        _require(0 < self.scale < math.inf, self, "a finite scale > 0")
        _require(0 <= self.offset < math.inf, self, "a finite offset >= 0")
        _require(0 <= self.power < math.inf, self, "a finite power >= 0")

    def __call__(self, k: int) -> float:
        try:
            return self.scale / (float(self.offset) + k) ** float(self.power)
        except OverflowError:  # what it is divided by is beyond all floats
            return 0.0


@dataclass(frozen=True)
class Geometric:
    r"""
    Geometric growth or decay, :math:`\mathrm{initial} \cdot \mathrm{rate}^{\lfloor (k-1) /
    \mathrm{every} \rfloor}`: the annealing of the "A-" variants is
    ``Geometric(tau0, rate, every=steps_per_epoch)``; without ``every`` the factor is per step.

    :param float initial: the value at the first step, positive.
    :param float rate: the factor, positive; above 1 grows.
    :param int every: how many steps a factor covers, e.g. the steps of an epoch.
    """

    initial: float
    rate: float
    every: int = 1

    def __post_init__(self) -> None:
        _read_numbers(self, "initial", "rate", "every")
        _require(0 < self.initial < math.inf, self, "a finite initial value > 0")
        _require(0 < self.rate < math.inf, self, "a finite rate > 0")
        _require(self.every >= 1, self, "every >= 1")

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
    A value that is multiplied by a factor at given steps.

    ``Piecewise(2e-9, {35_000: 0.1, 45_000: 0.1})`` is 2e-9 up to step 34,999, 2e-10 from step
    35,000 and 2e-11 from step 45,000.

    :param float initial: the value before the first change.
    :param factors: step to factor; each factor holds from its step on.
    """

    initial: float
    factors: Mapping[int, float]

    def __post_init__(self) -> None:
        _read_numbers(self, "initial")
        if not isinstance(self.factors, Mapping):
            raise TypeError(
                f"Piecewise: factors is {self.factors!r}, expected a mapping of steps to factors, "
                "such as {1000: 0.1}"
            )
        for step, factor in self.factors.items():
            check_numbers("Piecewise", **{"a step of factors": step, "a factor": factor})
        _require(math.isfinite(self.initial), self, "a finite initial value")
        _require(
            all(math.isfinite(factor) and factor > 0 for factor in self.factors.values()),
            self,
            "finite factors > 0",
        )
        factors = {_plain(step): _plain(f) for step, f in sorted(self.factors.items())}
        object.__setattr__(self, "factors", factors)

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
        _read_numbers(self, "initial", "period")
        _require(0 < self.initial < math.inf, self, "a finite initial value > 0")
        _require(self.period >= 1, self, "period >= 1")

    def __call__(self, k: int) -> float:
        phase = ((k - 1) % self.period) / self.period
        return 0.5 * self.initial * (1.0 + math.cos(math.pi * phase))


@dataclass(frozen=True)
class PruningSchedule:
    r"""
    A sparsity that rises to a target and levels off, equation (9):
    :math:`s_k = S (1 - D^{k/U})`.

    :param float target: S, the share of weights that are zero in the end, in [0, 1].
    :param float damping: D in [0, 1); the share still missing shrinks by this factor a period.
        With 0 the target holds from the first step on.
    :param float period: U, steps in a period, positive.
    """

    target: float
    damping: float = 0.99
    period: float = 50

    def __post_init__(self) -> None:
        _read_numbers(self, "target", "damping", "period")
        _require(0 <= self.target <= 1, self, "a target share in [0, 1]; 90 % is 0.9")
        _require(0 <= self.damping < 1, self, "a damping in [0, 1)")
        _require(0 < self.period < math.inf, self, "a finite period > 0")

    def __call__(self, k: int) -> float:
        """Equation (9)."""
        return self.target * (1.0 - self.damping ** (k / self.period))
