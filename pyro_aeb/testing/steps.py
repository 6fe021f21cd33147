# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A few steps of a transition, and their comparison."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.transitions import StepNumbers, Transition

NUMBERS = StepNumbers(step_size=0.05, inverse_temperature=2.0)


def random_numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def run(transition: Transition[Any], position: Tensor, noise: Tensor) -> list[Any]:
    """The states of some steps on the standard normal target, shape of noise (steps, ..., D)."""
    states = [transition.init(position)]
    for z in noise:
        states.append(transition.step(states[-1], -states[-1].position, z, NUMBERS))
    return states


def copied(state: Any) -> Any:
    return type(state)(*(tensor.clone() for tensor in state))


def equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def relative_error(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """The largest difference, relative to the largest number."""
    pairs = list(zip(a, b, strict=True))
    scale = max([1.0, *(float(y.double().abs().max()) for _, y in pairs)])
    differences = [float((x.double() - y.double()).abs().max()) for x, y in pairs]
    return max(differences, default=0.0) / scale


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
