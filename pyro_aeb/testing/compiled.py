# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Steps of a transition as they are compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_aeb.errors import first_line
from pyro_aeb.posterior.graphs import record_operations
from pyro_aeb.testing.reports import Outcome, require
from pyro_aeb.testing.steps import random_numbers, relative_error
from pyro_aeb.transitions import AnyTransition, StepNumbers, TargetTransition
from pyro_aeb.transitions.base import noise_size

SIZE, STEPS = 7, 4


def check_compiled_step(transition: AnyTransition) -> Outcome:
    """
    Check that the recorded operations of a step, which are what the kernel compiles, make the steps
    of the transition as it is written, at step sizes and temperatures that change.

    :param transition: any transition. One whose step cannot be recorded is no error: the kernel
        runs it as written.
    :returns: whether a step can be compiled, and if not, why.
    :raises AssertionError: if the recorded steps are others.
    """
    if isinstance(transition, TargetTransition):
        return Outcome("compiled", "the gradient alone, as a step asks for Q itself")
    for dtype in (torch.float32, torch.float64):
        error = _compare(transition, dtype)
        if isinstance(error, Exception):
            return Outcome("compiled", f"no, a step cannot be recorded: {first_line(error)}")
        require(
            error <= 1000 * torch.finfo(dtype).eps,
            "compiled",
            f"steps that differ by {error:.2g} from those as written, in {dtype}",
            "no more than rounding",
            "a step must not depend on Python values that change, but on its arguments alone",
        )
    return Outcome("compiled", "the recorded operations make the same steps")


def _compare(transition: Any, dtype: torch.dtype) -> float | Exception:
    """Return the relative difference of recorded steps; an error that recording them raises."""
    numbers = [StepNumbers(0.05 / k, 2.0 * k) for k in range(1, STEPS + 1)]
    state = transition.init(random_numbers(SIZE, dtype=dtype))
    noise = random_numbers(STEPS, noise_size(transition, SIZE), dtype=dtype, seed=1)

    def step(state: Any, gradient: Tensor, z: Tensor, eta: Any, tau: Any) -> Any:
        return transition.step(state, gradient, z, StepNumbers(eta, tau))

    def as_tensors(numbers: StepNumbers) -> list[Tensor]:
        return [torch.tensor(number, dtype=dtype) for number in numbers]

    try:
        inputs = (state, -state.position, noise[0], *as_tensors(numbers[0]))
        recorded = record_operations(step, *inputs)
    except Exception as error:  # of whatever kind
        return error
    same = state
    for now, z in zip(numbers, noise, strict=True):
        state = step(state, -state.position, z, *now)
        same = type(state)(*recorded(same, -same.position, z, *as_tensors(now)))
    return relative_error(same, state)
