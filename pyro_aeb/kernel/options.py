# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The options of a kernel, checked when it is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral
from typing import Any, Literal

import torch

from pyro_aeb.adaptation.build import AnyAdaptation
from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.data.minibatches import ORDERS, Order
from pyro_aeb.kernel.noise import KINDS, Kind
from pyro_aeb.model.initial_values import init_to_default
from pyro_aeb.model.links import HandLinks
from pyro_aeb.pruning import Pruning
from pyro_aeb.schedules import Constant, Schedule, as_inverse_temperature
from pyro_aeb.transitions import (
    AnyTransition,
    ContourSGLD,
    ReplicaExchange,
    TargetTransition,
    TunedBAOAB,
)
from pyro_aeb.validation import choice, count, flag, names


@dataclass(eq=False, repr=False)
class KernelOptions:
    """
    The options of an :class:`~pyro_aeb.AEBKernel`, which documents them.

    :raises TypeError: if an option is of the wrong kind.
    :raises ValueError: if an option is out of range, or does not go with another.
    """

    model: Callable[..., Any]
    transition: AnyTransition = "auto"  # type: ignore[assignment]
    adaptation: AnyAdaptation | None = None
    inverse_temperature: Schedule | float = 1.0
    steps_per_draw: int | Literal["auto"] = None  # type: ignore[assignment]
    _: KW_ONLY
    pruning: Pruning | None = None
    init_strategy: Callable[..., Any] = init_to_default
    save: Sequence[str] | None = None
    links: HandLinks | None = None
    freeze_after_warmup: bool = False
    minibatches: Order = "permutation"
    noise: Kind = "normal"
    compile: bool | Literal["auto"] = "auto"
    seed: int | None = None
    data_parallel: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.transition, str) and self.transition == "auto":
            self.transition = TunedBAOAB()
        self._check_kinds()
        self._check_values()
        self._check_combinations()

    @property
    def is_tuned(self) -> bool:
        """Whether some settings are chosen in warm-up."""
        tunes = bool(getattr(self.transition, "tuned", ()))
        return tunes or self.steps_per_draw == "auto"

    @property
    def given_steps(self) -> int:
        """Steps per draw; 1 where they are chosen in warm-up."""
        return 1 if isinstance(self.steps_per_draw, str) else self.steps_per_draw

    def _check_kinds(self) -> None:
        transition, adaptation, pruning = self.transition, self.adaptation, self.pruning
        moves = any(callable(getattr(transition, name, None)) for name in ("step", "move"))
        pruned_by = "MagnitudePruning(sparsity=...) or another of pyro_aeb.pruning, or None"
        for name, valid, expected in (
            ("model", callable(self.model), "a Pyro model (a callable)"),
            (
                "transition",
                moves and not isinstance(transition, type),
                'a transition such as SGLD(step_size=1e-5), or "auto"',
            ),
            (
                "adaptation",
                adaptation is None or isinstance(adaptation, AnyAdaptation),
                "StochasticApproximation(weight), Gibbs() or None",
            ),
            ("pruning", pruning is None or isinstance(pruning, Pruning), pruned_by),
            ("init_strategy", callable(self.init_strategy), "one of Pyro's init_to_* functions"),
            ("seed", self.seed is None or isinstance(self.seed, Integral), "an integer or None"),
        ):
            if not valid:
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def _check_values(self) -> None:
        self.inverse_temperature = as_inverse_temperature(self.inverse_temperature)
        self.steps_per_draw = self._steps_option(self.steps_per_draw)
        self.save = names("save", self.save)
        choice("minibatches", self.minibatches, Order, *ORDERS)
        choice("noise", self.noise, Kind, *KINDS)
        self.compile = _compile_option(self.compile)
        flag("freeze_after_warmup", self.freeze_after_warmup)
        flag("data_parallel", self.data_parallel)
        self.seed = None if self.seed is None else int(self.seed)

    def _steps_option(self, steps: Any) -> int | Literal["auto"]:
        """Return the option ``steps_per_draw``; by default "auto" for a tuned transition, or 1."""
        can_tune = isinstance(self.transition, TunedBAOAB)
        if steps is None:
            return "auto" if can_tune else 1
        if not (isinstance(steps, str) and steps == "auto"):
            return count("steps_per_draw", steps)
        if not can_tune:
            raise ValueError(
                f"steps_per_draw is 'auto', which is chosen for transitions.TunedBAOAB, and the "
                f"transition is {self.transition!r}; expected an integer of at least 1"
            )
        return "auto"

    def _check_combinations(self) -> None:
        transition = self.transition
        if isinstance(transition, TargetTransition):
            if self.noise != "normal" and transition.noise_size(1) > 1:
                raise ValueError(
                    f"noise is {self.noise!r} and {transition!r} decides by its numbers, expected "
                    "'normal'"
                )
        if isinstance(self.adaptation, Gibbs):
            self._check_gibbs()
        if self.data_parallel and self.seed is None:
            raise ValueError(
                "data_parallel=True without a seed, expected seed=..., the same on all ranks, from "
                "which they draw the same noise and minibatches"
            )

    def _check_gibbs(self) -> None:
        """Check that draws are those of the posterior that Gibbs' conditional laws belong to."""
        others = (ReplicaExchange, ContourSGLD)
        for name, valid, expected in (
            (
                "inverse_temperature",
                self.inverse_temperature == Constant(1.0),
                "1: at another temperature the densities of spikes and slabs have other "
                "normalising constants, and their number another law",
            ),
            ("pruning", self.pruning is None, "None: a weight held at zero is no draw of a spike"),
            (
                "freeze_after_warmup",
                not self.freeze_after_warmup,
                "False: gamma, sigma and delta are drawn for as long as the weights are",
            ),
            (
                "data_parallel",
                not self.data_parallel,
                "False: a scan takes all data",
            ),
            (
                "transition",
                not isinstance(self.transition, others),
                "one whose draws have the law of the posterior, such as SGLD, SGHMC or HMC",
            ),
        ):
            if not valid:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} with adaptation={self.adaptation!r}, "
                    f"expected {expected}; StochasticApproximation takes any"
                )


def option_rows(options: KernelOptions) -> list[tuple[str, str]]:
    """Return names and values of the options: the first six, and others not at their defaults."""
    rows = []
    for i, field in enumerate(fields(options)):
        value = getattr(options, field.name)
        if i < 6 or value is not field.default:
            rows.append((field.name, _describe(value)))
    return rows


def _describe(value: Any) -> str:
    function = getattr(value, "func", value)  # that of a partial
    if isinstance(value, torch.nn.Module) or function is not value:
        return getattr(function, "__name__", type(function).__name__)
    return getattr(value, "__name__", None) or repr(value)


def _compile_option(value: Any) -> bool | Literal["auto"]:
    """Return the option ``compile``; the values of version 0.1 are deprecated."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    if value in ("update", "all") or value is None:
        new = value is not None
        warnings.warn(
            f"compile={value!r} is deprecated, expected compile={new}: a step is compiled as a "
            "whole, or not at all",
            DeprecationWarning,
            stacklevel=6,
        )
        return new
    if isinstance(value, bool):
        return value
    raise TypeError(f"compile is {value!r}, expected True, False or 'auto'")
