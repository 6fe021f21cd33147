# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Noticing at once that a run has blown up, without making an accelerator wait."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Health:
    """
    Watches one number a step, which is not finite where the potential or the gradient is not (and
    may overflow where they are merely enormous).

    On the CPU the number is read where it was written, so a blow-up is seen at its own step, before
    the weights move. On an accelerator it is copied to the host without waiting and may be seen
    some steps later; :meth:`settle` waits.

    :param torch.device device: where the run is.
    :param torch.dtype dtype: of the position.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._host = torch.zeros((), dtype=dtype, device="cpu", pin_memory=pinned)
        self._number = self._host.numpy()

    def watch(self, log_density: Tensor, gradient: Tensor) -> bool:
        """
        Takes a step's figures; False where a step is known to have had a non-finite one.

        :param Tensor log_density: shape (...).
        :param Tensor gradient: shape (..., D).
        """
        if log_density.dim():
            log_density = log_density.sum()
        self._host.copy_(gradient.sum().add_(log_density), non_blocking=True)
        return math.isfinite(self._number)

    def settle(self) -> bool:
        """Waits for the last step's figures; False where they were not finite."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return math.isfinite(self._number)
