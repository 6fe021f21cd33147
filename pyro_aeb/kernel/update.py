# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step does once the likelihood's gradient is known: the prior's part of the gradient, the
transition, and the latents. It runs as it is written, or compiled into one piece.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents, Statistics
from pyro_aeb.errors import CompileWarning
from pyro_aeb.kernel.random_bits import numbers_of
from pyro_aeb.posterior.likelihood import Gradient
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.posterior.step_target import StepTarget
from pyro_aeb.transitions import AnyTransition, StepNumbers, TargetTransition
from pyro_aeb.validation import choice

Compile = Literal["update", "all"]
"""What a kernel compiles: what comes after the likelihood's gradient, or that too."""

Moved = tuple[Any, Latents | None]
"""The transition's state and the latents."""


def _settings() -> Any:
    """The compiler's settings: floats from tensors, and an update for each of many chains."""
    return torch._dynamo.config.patch({"capture_scalar_outputs": True, "recompile_limit": 64})


class Update:
    """
    The update of one model's chains.

    :param Posterior posterior: Q.
    :param transition: how the weights move.
    :param compile: None to compile nothing, else it is compiled with :func:`torch.compile`. In
        compiled code step size and inverse temperature are rounded to single precision, as torch's
        compiler does with numbers that change. A transition that asks for Q itself is not compiled.
    """

    def __init__(
        self, posterior: Posterior, transition: AnyTransition, compile: Compile | None
    ) -> None:
        self._posterior = posterior
        self._transition: Any = transition
        self._moves = isinstance(transition, TargetTransition)  # asked once: not cheap in a step
        self._compiled: Callable[..., Moved] | None = None
        # Numbers that change from step to step go in as tensors, or each would be compiled anew: as
        # tensors of one number each on the CPU, which kernels of a GPU take by value, and of single
        # precision, as torch takes doubles for numbers of Python's, and those for constants.
        self._values = tuple(
            torch.zeros((), dtype=torch.float32, device="cpu") for _ in StepNumbers._fields
        )
        self._begun = False  # whether anything has been compiled
        if compile is not None and not self._moves:
            self._compiled = torch.compile(self._traced, dynamic=False, fullgraph=True)

    @property
    def compiled(self) -> bool:
        """Whether it is compiled, or will be."""
        return self._compiled is not None

    def __call__(
        self,
        state: Any,
        latents: Latents | None,
        found: Gradient,
        noise: Tensor,
        numbers: StepNumbers,
        weight: float,
        target: StepTarget,
    ) -> Moved:
        """
        The state and the latents after a step.

        :param state: the transition's state before it.
        :param latents: the latents before it, None where there are none.
        :param Gradient found: of the likelihood, at the state's position; it is overwritten.
        :param Tensor noise: the step's random numbers; if compiled, bits will do.
        :param StepNumbers numbers: step size and inverse temperature.
        :param float weight: omega at this step; 0 leaves the latents alone.
        :param StepTarget target: Q at this step.
        """
        _, gradient, statistics = found
        if self._moves:
            with torch.no_grad():
                here = target.here(found, state.position)
                state = self._transition.move(state, here, noise, numbers, target)
                return state, self._learned(state, latents, statistics, weight)
        if self._compiled is None:
            return self._move(state, latents, gradient, statistics, noise, numbers, weight)
        for value, number in zip(self._values, numbers, strict=True):
            value.fill_(number)
        omega = gradient.new_full((), weight) if weight > 0.0 else None
        if latents is not None and latents.ssgl is not None:
            excess = latents.ssgl.excess
            if not isinstance(excess, Tensor):
                excess = gradient.new_full((), excess)
            latents = latents._replace(ssgl=latents.ssgl._replace(excess=excess))
        given = (state, latents, gradient, statistics, noise)
        try:
            return self._run_compiled(self._compiled, *given, self._values, omega)
        except Exception as error:  # of whatever kind the compiler's failures are
            moved = self._move(*given, numbers, weight)
            # It was the compiler, for the same step goes well without it.
            self._compiled = None
            warnings.warn(
                f"the update cannot be compiled ({type(error).__name__}: "
                f"{next(iter(str(error).strip().splitlines()), '')}), so it runs as it is written. "
                "torch.compile needs a C++ compiler (g++ or clang) on the path, and a transition "
                "that does not branch on values; compile=None asks for no compiling",
                CompileWarning,
                stacklevel=4,
            )
            return moved

    def _run_compiled(self, compiled: Callable[..., Moved], *given: Any) -> Moved:
        """
        The compiler's settings are changed only where it has something to compile: changing them
        takes as long as a small model's update.
        """
        if self._begun:
            try:
                return compiled(*given)
            except Exception:  # of whatever kind: something new, such as omega = 0
                pass
        with _settings():
            moved = compiled(*given)
        self._begun = True
        return moved

    def _traced(
        self,
        state: Any,
        latents: Latents | None,
        gradient: Tensor,
        statistics: Statistics,
        noise: Tensor,
        values: tuple[Tensor, ...],
        omega: Tensor | None,
    ) -> Moved:
        """What is compiled: inside, the step's numbers are floats of no known value."""
        numbers = StepNumbers(*(value.item() for value in values))
        weight = 0.0 if omega is None else omega
        return self._move(state, latents, gradient.clone(), statistics, noise, numbers, weight)

    @torch.no_grad()
    def _move(
        self,
        state: Any,
        latents: Latents | None,
        gradient: Tensor,
        statistics: Statistics,
        noise: Tensor,
        numbers: StepNumbers,
        weight: float | Tensor,
    ) -> Moved:
        self._posterior.add_prior(gradient, state.position, latents)
        state = self._transition.step(state, gradient, numbers_of(noise), numbers)
        return state, self._learned(state, latents, statistics, weight)

    def _learned(
        self, state: Any, latents: Latents | None, statistics: Statistics, weight: float | Tensor
    ) -> Latents | None:
        if latents is not None and (isinstance(weight, Tensor) or weight > 0.0):
            return self._posterior.update(latents, state.position, statistics, weight)
        return latents


def check_compile(compile: Any) -> None:
    """
    :raises ValueError: if ``compile`` is neither None nor the name of what can be compiled.
    """
    meanings = ("what a step does after the likelihood's gradient", "the gradient too")
    choice("compile", compile, Compile, *meanings, optional=True)
