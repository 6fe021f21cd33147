# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How many operations of torch a step calls, and how often it waits for their values."""

from __future__ import annotations

from typing import NamedTuple

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from .peers.base import Peer

GRADIENT = "the likelihood's gradient"
BATCH = "the batch"
"""The profiler's ranges that are not counted as the update."""

WAITS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")
"""What reads a value: ``item()``, ``float(x)``, ``if x:``; on a device, any copy to the host."""


class Counts(NamedTuple):
    """
    :param int operations: of a step, as the program and autograd call them; what these call in
        their turn is not counted.
    :param update: of those, all outside of the likelihood's gradient and of the fetching of its
        batch; None where not known.
    :param int waits: for a value.
    """

    operations: int
    update: int | None
    waits: int


def count(peer: Peer) -> Counts | None:
    """The operations of a call that is one step, None where they are not torch's."""
    if not peer.torch or peer.steps > 1:
        return None
    for _ in range(2):
        peer.call()
    run = peer.inside or (lambda step: step())
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(peer.call)
    events = profiler.events()
    calls = [event for event in events if _called(event)]
    waits = sum(event.name in WAITS for event in events)
    if peer.inside is None:
        return Counts(len(calls), None, waits)
    ranges = [event.time_range for event in events if event.name in (GRADIENT, BATCH)]
    within = [e for e in calls if any(r.start <= e.time_range.start <= r.end for r in ranges)]
    return Counts(len(calls), len(calls) - len(within), waits)


def _called(event: FunctionEvent) -> bool:
    """Whether an event is an operation that no other operation called."""
    if not event.name.startswith("aten::"):
        return False
    above = event.cpu_parent
    while above is not None:
        if above.name.startswith("aten::"):
            return False
        above = above.cpu_parent
    return True
