# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A step beside forward and backward alone. The two are timed in turn, a few calls each, and the ratio
is taken turn by turn, so that it holds when the machine's speed drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyro
import torch

from .peers.base import Peer
from .workloads import Step

THREADS = 2


@contextmanager
def as_in_mcmc() -> Iterator[None]:
    """Two threads and no validation, as pyro.infer.MCMC runs by default."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        torch.set_num_threads(threads)


def seconds(call: Step, calls: int) -> float:
    """Seconds a call, on average; on an accelerator until all is done."""
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _wait()
    return (time.perf_counter() - start) / calls


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass
class Timing:
    """
    The turns so far.

    :param step: seconds a step, turn by turn.
    :param alone: seconds of forward and backward alone, turn by turn.
    """

    step: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)

    def take_turns(self, peer: Peer, turns: int, calls: int) -> None:
        """
        Adds turns, after one call of each that is not timed. Which of the two goes first changes
        from turn to turn.

        :param int calls: of each, a turn.
        """
        peer.step(), peer.alone()
        for turn in range(turns):
            if turn % 2:
                alone = seconds(peer.alone, calls)
                step = seconds(peer.step, calls)
            else:
                step = seconds(peer.step, calls)
                alone = seconds(peer.alone, calls)
            self.step.append(step)
            self.alone.append(alone)

    def ratio(self) -> tuple[float, float, float]:
        """The quartiles of step / alone: lower, median, upper."""
        ratios = [step / alone for step, alone in zip(self.step, self.alone, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        return low, median, high

    def milliseconds(self) -> tuple[float, float]:
        """Medians: of a step, and of forward and backward alone."""
        return 1e3 * statistics.median(self.step), 1e3 * statistics.median(self.alone)
