# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""An iteration of Algorithm 1 as one program, from the batch to the new state and latents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.kernel.algorithm import Stepped, Update
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.posterior.program import Program
from pyro_aeb.transitions import StepNumbers

AUTO_STEPS = 20_000
"""
Steps from which compiling pays. It takes some 50 ms for each of a step's operations, and a compiled
one runs some 5 microseconds faster: 10,000 steps, whatever the model. The rule knows no clock, so
that a seed gives the same draws on a busy day.
"""


def first_compiled_step(compile: bool | str, warmup: int) -> int | None:
    """
    Return the step after which steps are compiled; None to compile none.

    :param compile: the kernel's option.
    :param int warmup: steps of warm-up. ``"auto"`` compiles at the start where these are enough to
        pay for it, otherwise once as many steps have been made.
    """
    if compile == "auto":
        return 0 if warmup >= AUTO_STEPS else AUTO_STEPS
    return 0 if compile else None


class CompiledStep:
    """
    An iteration whose model, gradient, prior, transition and latents are compiled together. Step
    size, inverse temperature and omega are tensors of the weights' precision, so that one program
    serves all steps.

    :param Update update: for a transition that does not ask for Q itself.
    :param Buffers buffers: those that the model changes.
    :param partial: the plates whose indices change from step to step.
    :param Tensor like: of the weights' dtype and device.
    :param report: see :class:`~pyro_aeb.posterior.program.Program`.
    """

    def __init__(
        self,
        update: Update,
        buffers: Buffers,
        partial: Collection[str],
        like: Tensor,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._update = update
        self._program = Program(self._step, buffers, partial, report)
        self.warn = self._program.warn
        self._device = like.device
        self._host = torch.zeros(3, dtype=like.dtype, device="cpu")
        self._view = self._host.numpy()

    def __call__(
        self,
        state: Any,
        latents: Latents | None,
        batch: Batch,
        noise: Tensor,
        numbers: StepNumbers,
        omega: float,
    ) -> Stepped | None:
        """Return the result of the iteration; None where it is not compiled."""
        moving = state, self._with_tensors(latents), noise, self._values(numbers, omega)
        stepped: Stepped | None = self._program(moving, batch, omega > 0.0)
        return stepped

    def ready(self, batch: Batch, learns: bool) -> int:
        """Return how many iterations :meth:`repeat` can make now."""
        return self._program.ready(batch, learns)

    def repeat(
        self,
        state: Any,
        latents: Latents | None,
        batch: Batch,
        numbers: Sequence[Sequence[float]],
        noise: Tensor,
        rows: Mapping[str, Sequence[Tensor]],
        draw: Callable[[], None],
    ) -> tuple[Stepped, Tensor]:
        """
        Make several iterations by the code of single ones, on the same numbers.

        :param numbers: step sizes, inverse temperatures and omegas of the iterations; omega is 0 in
            all of them or in none.
        :param Tensor noise: of all iterations.
        :param rows: of plates the indices of all batches.
        :param draw: draws the noise of the next iteration and its indices; called before each.
        :returns: the result of the last one; and a number that is finite where the health of all of
            them is.
        """
        values = np.ascontiguousarray(np.array(numbers, self._view.dtype).T)
        given = noise, torch.from_numpy(values).to(self._device)
        moving = state, self._with_tensors(latents), noise[0], self._host
        stepped, (_, health) = self._program.repeat(
            moving, batch, given, rows, draw, numbers[-1][0] > 0.0
        )
        return stepped, health.sum()

    def _values(self, numbers: StepNumbers, omega: float) -> Tensor:
        self._view[:] = *numbers, omega
        return self._host if self._device.type == "cpu" else self._host.to(self._device)

    def _with_tensors(self, latents: Latents | None) -> Latents | None:
        """Return latents whose numbers are tensors, as they are after a compiled step."""
        if latents is None or latents.ssgl is None or isinstance(latents.ssgl.excess, Tensor):
            return latents
        excess = torch.full_like(self._host[0], latents.ssgl.excess, device=self._device)
        return latents._replace(ssgl=latents.ssgl._replace(excess=excess))

    def _step(self, moving: Any, batch: Batch, learns: bool) -> Stepped:
        state, latents, noise, values = moving
        step_size, inverse_temperature, omega = values.unbind()
        numbers = StepNumbers(cast(Any, step_size), cast(Any, inverse_temperature))
        likelihood = self._update.posterior.evaluate_likelihood(state.position, latents, batch)
        health = likelihood.health()
        state, latents = self._update(
            state, latents, likelihood, convert_bits(noise), numbers, omega if learns else 0.0
        )
        return Stepped(state, latents, likelihood.log_density, health)
