# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a peer is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..workloads import Step

FRICTION = 0.1


class Peer(NamedTuple):
    """
    :param step: one step of a sampler or an optimiser.
    :param alone: forward and backward alone of its model on its batch.
    :param inside: runs what it is given with every gradient of a likelihood inside of a profiler's
        range of the name :data:`~benchmarks.counting.GRADIENT`; None where a step's parts cannot
        be told apart.
    :param bool torch: whether its operations are torch's.
    """

    step: Step
    alone: Step
    inside: Callable[[Step], object] | None = None
    torch: bool = True
