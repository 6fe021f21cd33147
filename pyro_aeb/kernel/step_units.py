# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Units of the weights in a step. Where the width v0 of the spikes is learned, a step sees the weights
in units of their scale, sigma v0, so that it grows and shrinks with them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_aeb.transitions import StepNumbers


def in_units(state: Any, unit: Tensor) -> Any:
    """
    Return a transition's state with the weights in some unit.

    :param Tensor unit: shape (..., 1).
    """
    return state._replace(position=state.position / unit)


def step_in_units(
    transition: Any,
    state: Any,
    gradient: Tensor,
    noise: Tensor,
    numbers: StepNumbers,
    unit: Tensor,
) -> Any:
    """Return the state after a step, equation (3a) or (3b), of the weights in some unit."""
    state = transition.step(in_units(state, unit), gradient * unit, noise, numbers)
    return state._replace(position=state.position * unit)
