# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Ways to draw a step's random numbers, by themselves and inside a step of the MLP.

    python -m tests.benchmarks.noise

prints for each the milliseconds of a draw, and the quartiles of step / (forward + backward). The
ways take turns. Time a quiet machine; it takes a minute.

What takes less time by itself may take none less in a step: torch's own threads wait for work in a
loop, and a thread that draws shares the second core with them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.noise import Noise

from .peers import ours
from .peers.base import Peer
from .timing import Timing, as_in_mcmc, seconds
from .workloads import dense_network

Draw = Callable[[], Tensor]
"""Numbers for one step, in memory of their own."""


def as_drawn(kind: str, like: Tensor) -> Draw:
    """The kernel's."""
    return Noise(kind, like, [torch.Generator()]).draw  # type: ignore[arg-type]


def in_two_threads(like: Tensor) -> Draw:
    """Normal numbers of torch, each half in a thread of its own."""
    buffer, pool = torch.empty_like(like), ThreadPoolExecutor(1)
    halves = [(part, torch.Generator()) for part in buffer.chunk(2)]

    def draw() -> Tensor:
        (first, own), (second, other) = halves
        waiting = pool.submit(second.normal_, generator=other)
        first.normal_(generator=own)
        waiting.result()
        return buffer

    return draw


def by_inverse(like: Tensor) -> Draw:
    """Normal numbers by the inverse of their distribution function, of 24 bits of SFC64 each."""
    buffer, words = torch.empty_like(like), np.random.SFC64(0)
    half = torch.tensor(2.0**-24)

    def draw() -> Tensor:
        bits = words.random_raw((len(buffer) + 1) // 2).view(np.int32)[: len(buffer)]
        k = torch.from_numpy(bits).bitwise_right_shift_(8)
        torch.add(half, k, alpha=2.0**-23, out=buffer)
        return buffer.erfinv_().mul_(math.sqrt(2.0))

    return draw


def ways(like: Tensor) -> dict[str, Draw]:
    """All of them, by name."""
    still = torch.randn_like(like)
    return {
        "normal": as_drawn("normal", like),
        "normal, two threads": in_two_threads(like),
        "normal, by the inverse": by_inverse(like),
        "three-point": as_drawn("three-point", like),
        "none": lambda: still,
    }


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("--turns", type=int, default=150, help="of each way (default 150)")
    turns = parser.parse_args().turns
    with as_in_mcmc():
        workload = dense_network()
        kernel = workload.kernel(seed=0)
        found = ways(kernel.chain.state.position)
        timings = {name: Timing() for name in found}
        peers = {name: _peer(kernel, draw, workload.alone()) for name, draw in found.items()}
        for _ in range(turns):
            for name, peer in peers.items():
                timings[name].take_turns(peer, 1, 1)
        for name, draw in found.items():
            alone = 1e3 * median(seconds(draw, 1) for _ in range(turns))
            low, middle, high = timings[name].ratio()
            print(f"{name:24} {alone:6.2f} ms   {middle:.2f} [{low:.2f}, {high:.2f}]")


def _peer(kernel: ours.AEBKernel, draw: Draw, alone: Callable[[], object]) -> Peer:
    def step() -> None:
        kernel.chain.noise.draw = draw  # type: ignore[method-assign]
        kernel._step(kernel.chain)

    return Peer(step, alone, lambda call: call())


if __name__ == "__main__":
    main()
