# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""An iteration of Algorithm 1 as one program, from the batch to the new state and latents."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.kernel.algorithm import Stepped, Update
from pyro_aeb.kernel.random_bits import convert_bits
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.posterior.program import Program
from pyro_aeb.transitions import StepNumbers


class CompiledStep:
    """
    An iteration whose model, gradient, prior, transition and latents are compiled together. Step
    size, inverse temperature and omega are tensors of the weights' precision, so that one program
    serves all steps.

    :param Update update: for a transition that does not ask for Q itself.
    :param Buffers buffers: those that the model changes.
    :param partial: the plates whose indices change from step to step.
    :param Tensor position: the weights, for dtype and device.
    """

    def __init__(
        self, update: Update, buffers: Buffers, partial: Collection[str], position: Tensor
    ) -> None:
        self._update = update
        self._program = Program(self._step, buffers, partial)
        self.warn = self._program.warn
        self._device = position.device
        self._host = torch.zeros(3, dtype=position.dtype, device="cpu")
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
        self._view[:] = *numbers, omega
        if latents is not None and latents.ssgl is not None:
            excess = latents.ssgl.excess
            if not isinstance(excess, Tensor):
                excess = torch.full_like(self._host[0], excess, device=self._device)
                latents = latents._replace(ssgl=latents.ssgl._replace(excess=excess))
        values = self._host if self._device.type == "cpu" else self._host.to(self._device)
        stepped: Stepped | None = self._program((state, latents, noise, values), batch, omega > 0.0)
        return stepped

    def _step(self, moving: Any, batch: Batch, learns: bool) -> Stepped:
        state, latents, noise, values = moving
        step_size, inverse_temperature, omega = values.unbind()
        numbers = StepNumbers(step_size, inverse_temperature)
        likelihood = self._update.posterior.evaluate_likelihood(state.position, latents, batch)
        health = likelihood.health()
        state, latents = self._update(
            state, latents, likelihood, convert_bits(noise), numbers, omega if learns else 0.0
        )
        return Stepped(state, latents, likelihood.log_density, health)
