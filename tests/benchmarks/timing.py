# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Times of steps. What is compared takes turns, in one process: in a turn each is timed once, in an
order that changes, and ratios are taken turn by turn, so that they hold when the machine's speed
drifts.
"""

from __future__ import annotations

import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyro
import torch

from .peers.base import Peer
from .workloads import Step

THREADS = 2

Clock = Callable[[], float]


@contextmanager
def as_in_mcmc(threads: int | None = None) -> Iterator[None]:
    """No validation, as in pyro.infer.MCMC, and as many threads; :data:`THREADS` if not given."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or THREADS)
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        torch.set_num_threads(before)


def seconds(call: Step, calls: int, clock: Clock = time.perf_counter) -> float:
    """Seconds a call, on average; on an accelerator until all is done."""
    return _seconds(Peer(call), calls, clock)


def _seconds(peer: Peer, calls: int, clock: Clock) -> float:
    """Seconds a call, until all is done."""
    _wait()
    start = clock()
    for _ in range(calls):
        peer.call()
    peer.wait()
    _wait()
    return (clock() - start) / calls


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Turns:
    """
    The turns so far. Something that fails takes no further turns.

    :param peers: what takes turns, by name.
    :param float duration: seconds that each is timed in a turn, about; one call at least.
    :param clock: of seconds: :func:`time.perf_counter`, :func:`time.process_time`.
    """

    def __init__(
        self, peers: Mapping[str, Peer], duration: float, clock: Clock = time.perf_counter
    ) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in peers}
        """Seconds a step, turn by turn."""
        self.notes: dict[str, str] = {}
        """How what failed did."""
        self._peers, self._calls = dict(peers), dict.fromkeys(peers, 0)
        self._duration, self._clock = duration, clock
        self._random = random.Random(0)

    def take(self, turns: int) -> None:
        """Take some more turns."""
        for _ in range(turns):
            names = list(self._peers)
            self._random.shuffle(names)
            for name in names:
                try:
                    self.times[name].append(self._time(name))
                except Exception as error:
                    self.notes[name] = failure(error)
                    del self._peers[name]

    def _time(self, name: str) -> float:
        peer = self._peers[name]
        if not self._calls[name]:
            _seconds(peer, 1, self._clock)
            once = _seconds(peer, 1, time.perf_counter)
            self._calls[name] = max(1, round(self._duration / once))
        if self._calls[name] > 1:  # what others did before is not in the processor's caches
            _seconds(peer, 1, self._clock)
        return _seconds(peer, self._calls[name], self._clock) / peer.steps


def failure(error: Exception) -> str:
    """Print an error, and return a line about it."""
    traceback.print_exception(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def ratio(times: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles of ratios, turn by turn, as far as both have got."""
    return quartiles([a / b for a, b in zip(times, others, strict=False)])
