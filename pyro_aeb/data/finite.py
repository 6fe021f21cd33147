# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Count the numbers of a tensor that are not finite, in little memory."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**20
"""Numbers that are looked at a time: of all at once, ``torch.isfinite`` would take twice theirs."""


def count_non_finite(value: Tensor) -> int:
    """Return how many numbers are not finite, after one synchronisation with a device."""
    if not value.numel() or not value.is_floating_point():
        return 0
    if value.numel() <= CHUNK:
        return int((~torch.isfinite(value)).sum())
    axis = max(range(value.dim()), key=lambda axis: value.shape[axis])
    parts = value.split(max(CHUNK * value.shape[axis] // value.numel(), 1), axis)
    return int(torch.stack([(~torch.isfinite(part)).sum() for part in parts]).sum())
