# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The part of an iteration that follows the likelihood's gradient, compiled into one piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.errors import CompileWarning, first_line
from pyro_aeb.kernel.algorithm import Update
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.model.side_effects import start_autograd
from pyro_aeb.posterior.likelihood import Evaluation
from pyro_aeb.transitions import StepNumbers

Stepped = tuple[Any, Latents | None]
"""The transition's state and the latents."""


def _settings() -> Any:
    """Return settings of the compiler: floats from tensors, code for each of many chains."""
    return torch._dynamo.config.patch({"capture_scalar_outputs": True, "recompile_limit": 64})


class CompiledUpdate:
    """
    An :class:`~pyro_aeb.kernel.algorithm.Update` compiled with :func:`torch.compile`. Step size and
    inverse temperature are rounded to single precision, as torch's compiler does with numbers that
    change.

    :param Update update: as written, for a transition that does not ask for Q itself.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        # Numbers that change from step to step go in as tensors, or each would be compiled anew: as
        # tensors of one number each on the CPU, which kernels of a GPU take by value, and of single
        # precision, as torch takes doubles for numbers of Python's, and those for constants.
        self._values = tuple(
            torch.zeros((), dtype=torch.float32, device="cpu") for _ in StepNumbers._fields
        )
        self._has_compiled = False
        start_autograd()
        self._compiled: Callable[..., Stepped] | None = torch.compile(
            self._traced, dynamic=False, fullgraph=True
        )

    def __call__(
        self,
        state: Any,
        latents: Latents | None,
        likelihood: Evaluation,
        noise: Tensor,
        numbers: StepNumbers,
        omega: float,
        target: None = None,
    ) -> Stepped:
        """See :meth:`pyro_aeb.kernel.algorithm.Update.__call__`; bits will do for ``noise``."""
        if self._compiled is None:
            drawn = convert_bits(noise)
            return self._update(state, latents, likelihood, drawn, numbers, omega)
        for value, number in zip(self._values, numbers, strict=True):
            value.fill_(number)
        scalar = likelihood.gradient.new_full
        weight = scalar((), omega) if omega > 0.0 else None
        if latents is not None and latents.ssgl is not None:
            excess = latents.ssgl.excess
            if not isinstance(excess, Tensor):
                excess = scalar((), excess)
            latents = latents._replace(ssgl=latents.ssgl._replace(excess=excess))
        arguments = (state, latents, likelihood, noise, self._values, weight)
        try:
            return self._run_compiled(self._compiled, *arguments)
        except Exception as error:  # of whatever kind the compiler's failures are
            drawn = convert_bits(noise)
            stepped = self._update(state, latents, likelihood, drawn, numbers, omega)
            # It was the compiler, for the same step goes well without it.
            self._compiled = None
            warnings.warn(
                f"the update cannot be compiled ({first_line(error)}), so it runs as it is "
                "written. torch.compile needs a C++ compiler (g++ or clang) on the path, and a "
                "transition that does not branch on values; compile=None asks for no compiling",
                CompileWarning,
                stacklevel=4,
            )
            return stepped

    def _run_compiled(self, compiled: Callable[..., Stepped], *arguments: Any) -> Stepped:
        """
        Run the compiled update. The compiler's settings are changed only where it has something to
        compile: changing them takes as long as a small model's update.
        """
        if self._has_compiled:
            try:
                return compiled(*arguments)
            except Exception:  # of whatever kind: something new, such as omega = 0
                pass
        with _settings():
            stepped = compiled(*arguments)
        self._has_compiled = True
        return stepped

    def _traced(
        self,
        state: Any,
        latents: Latents | None,
        likelihood: Evaluation,
        noise: Tensor,
        values: tuple[Tensor, ...],
        omega: Tensor | None,
    ) -> Stepped:
        """Update as written; inside, the step's numbers are floats of no known value."""
        numbers = StepNumbers(*(value.item() for value in values))
        likelihood = likelihood._replace(gradient=likelihood.gradient.clone())
        weight = 0.0 if omega is None else omega
        return self._update(state, latents, likelihood, convert_bits(noise), numbers, weight)
