# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Ways to draw a step's random numbers, by themselves and inside a step of the MLP; with a compiled
update also as bits, of which it makes the numbers itself.

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

from pyro_aeb.kernel import algorithm
from pyro_aeb.kernel.noise import Noise

from .peers import ours
from .peers.base import Peer
from .timing import Timing, as_in_mcmc, seconds
from .workloads import dense_network

Draw = Callable[[], Tensor]
"""Numbers for one step, in memory of their own."""


def as_drawn(kind: str, like: Tensor, bits: bool = False) -> Draw:
    """As the kernel draws numbers, or bits for a compiled update."""
    return Noise(kind, like, [torch.Generator()], bits=bits).draw  # type: ignore[arg-type]


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


def ways(like: Tensor) -> dict[str, tuple[bool, Draw]]:
    """All of them, by name: whether the update is compiled, and how to draw."""
    still = torch.randn_like(like)
    return {
        "normal": (False, as_drawn("normal", like)),
        "... in two threads": (False, in_two_threads(like)),
        "... by the inverse": (False, by_inverse(like)),
        "three-point": (False, as_drawn("three-point", like)),
        "none": (False, lambda: still),
        "compiled: normal": (True, as_drawn("normal", like)),
        "... of bits": (True, as_drawn("normal", like, bits=True)),
        "compiled: three-point": (True, as_drawn("three-point", like)),
        "... of bytes": (True, as_drawn("three-point", like, bits=True)),
        "compiled: none": (True, lambda: still),
    }


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("--turns", type=int, default=150, help="of each way (default 150)")
    turns = parser.parse_args().turns
    with as_in_mcmc():
        workload = dense_network()
        kernels = {
            compiled: workload.kernel(seed=0, compile="update" if compiled else None)
            for compiled in (False, True)
        }
        found = ways(kernels[False].chain.state.position)
        timings = {name: Timing() for name in found}
        peers = {
            name: _peer(kernels[compiled], draw, workload.alone())
            for name, (compiled, draw) in found.items()
        }
        for peer in peers.values():  # the first step compiles
            peer.step()
        for _ in range(turns):
            for name, peer in peers.items():
                timings[name].take_turns(peer, 1, 1)
        for name, (_, draw) in found.items():
            alone = 1e3 * median(seconds(draw, 1) for _ in range(turns))
            low, middle, high = timings[name].ratio()
            print(f"{name:24} {alone:6.2f} ms   {middle:.2f} [{low:.2f}, {high:.2f}]")


def _peer(kernel: ours.AEBKernel, draw: Draw, alone: Callable[[], object]) -> Peer:
    def step() -> None:
        kernel.chain.noise.draw = draw  # type: ignore[method-assign]
        algorithm.step(kernel, kernel.chain)

    return Peer(step, alone, lambda call: call())


if __name__ == "__main__":
    main()
