# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a run that cannot go on says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.data.arguments import Arguments, tensors_of
from pyro_aeb.errors import NonFiniteError
from pyro_aeb.transitions import StepNumbers
from pyro_aeb.validation import is_number

_KEPT = "The draws finished before are in this error's `draws` and in kernel.recover()"


def are_good(numbers: StepNumbers) -> bool:
    """
    Whether schedules have given numbers that a step can be made of. What they are multiplied to
    must be in the range of single precision.
    """
    tau = numbers.inverse_temperature
    return _is_step_size(numbers.step_size) and is_number(tau) and bool(1e-38 <= tau < math.inf)


def _is_step_size(value: Any) -> bool:
    return is_number(value) and bool(0.0 < value <= 1e38)


def bad_number(k: int, numbers: StepNumbers, schedules: Mapping[str, Any]) -> ValueError:
    """
    The error of a step that a schedule gives no finite number > 0.

    :param int k: the step.
    :param StepNumbers numbers: its numbers.
    :param schedules: where each comes from, by name.
    """
    name = "step_size" if not _is_step_size(numbers.step_size) else "inverse_temperature"
    limit = "at most 1e38" if name == "step_size" else "at least 1e-38"
    return ValueError(
        f"{name} is {getattr(numbers, name)} at step {k}, expected a finite number > 0, {limit}; "
        f"it comes from {schedules[name]!r}"
    )


def check_batch(k: int, arguments: Arguments, draws: dict[str, Tensor]) -> None:
    """
    Where a gradient is not finite because the data are not, says so.

    :param int k: the step.
    :param Arguments arguments: its data.
    :param draws: the draws finished before.
    :raises NonFiniteError: if a number in the batch is not finite.
    """
    for name, value in tensors_of(arguments):
        if value.is_floating_point() and (bad := int((~torch.isfinite(value)).sum())):
            raise NonFiniteError(
                f"step {k}: argument {name} of this batch has {bad} non-finite of "
                f"{value.numel()} numbers, so the run stops here; remove or impute them in "
                f"the data set. {_KEPT}",
                step=k,
                site=None,
                draws=draws,
            )


def blown_up(
    k: int, site: str | None, what: str, size: float, draws: dict[str, Tensor]
) -> NonFiniteError:
    """
    The error of a run whose numbers are no longer finite.

    :param int k: the step.
    :param site: the first site concerned, None if it is the potential.
    :param str what: what is not finite.
    :param float size: the step size.
    :param draws: the draws finished before.
    """
    return NonFiniteError(
        f"step {k}: {what} is not finite, so the run stops here. The usual cause is a step "
        f"size that is too large for the curvature: it is {size:.3g}, try {size / 10:.1g}. "
        f"Else look at the data's scale and the starting point. {_KEPT}",
        step=k,
        site=site,
        draws=draws,
    )


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
