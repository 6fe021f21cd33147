# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a peer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..workloads import Step


class Peer(NamedTuple):
    """
    Something that makes steps.

    :param call: makes them.
    :param int steps: that a call makes.
    :param wait: until all steps are made, where a call returns before.
    :param inside: runs what it is given with every gradient of a likelihood inside of a profiler's
        range of the name :data:`~benchmarks.counting.GRADIENT`; None where a step's parts cannot
        be told apart.
    :param bool torch: whether its operations are torch's.
    """

    call: Step
    steps: int = 1
    wait: Step = lambda: None
    inside: Callable[[Step], object] | None = None
    torch: bool = True
