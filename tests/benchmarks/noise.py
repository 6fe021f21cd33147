# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Ways to draw a step's random numbers, by themselves and inside a step of the MLP; in a compiled
step also as bits, of which it makes the numbers itself.

    python -m tests.benchmarks.noise --out docs/results/speed

prints for each the milliseconds of a draw, and the quartiles of step / (forward + backward). The
ways take turns. Time a quiet machine; it takes two minutes.

What takes less time by itself may take none less in a step: torch's own threads wait for work in a
loop, and a thread that draws shares the second core with them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

import pyro_aeb as aeb
from pyro_aeb.kernel import algorithm
from pyro_aeb.kernel.noise import Noise

from .peers.base import Peer
from .timing import Turns, as_in_mcmc, ratio
from .workloads import compiled, dense_network

Draw = Callable[[], Tensor]
"""Numbers for one step, in memory of their own."""


def as_drawn(kind: str, like: Tensor, bits: bool = False) -> Draw:
    """As the kernel draws numbers, or bits for a compiled step."""
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
    """All of them, by name: whether the step is compiled, and how to draw."""
    still = torch.randn_like(like)
    return {
        "normal numbers, as the kernel draws them": (False, as_drawn("normal", like)),
        "… in two threads": (False, in_two_threads(like)),
        "… by the inverse of the distribution function": (False, by_inverse(like)),
        "three-point, as the kernel draws them": (False, as_drawn("three-point", like)),
        "none": (False, lambda: still),
        "compiled: normal numbers": (True, as_drawn("normal", like)),
        "… bits for them, as the kernel draws them": (True, as_drawn("normal", like, bits=True)),
        "compiled: three-point numbers": (True, as_drawn("three-point", like)),
        "… bytes for them, as the kernel draws them": (
            True,
            as_drawn("three-point", like, bits=True),
        ),
        "compiled: none": (True, lambda: still),
    }


def main() -> None:
    """Print a line for each way, as a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("--turns", type=int, default=150, help="of each way (default 150)")
    parser.add_argument("--out", type=Path, help="a folder for noise.md")
    options = parser.parse_args()
    with as_in_mcmc():
        workload = dense_network()
        found = ways(workload.kernel(seed=0).chain.state.position)
        steps = {
            name: _peer(workload.kernel(seed=0, compile=compiled(whether)), draw)
            for name, (whether, draw) in found.items()
        }
        timed = Turns({"alone": Peer(workload.alone())} | steps, duration=0.0)
        draws = Turns({name: Peer(draw) for name, (_, draw) in found.items()}, duration=0.0)
        timed.take(options.turns)
        draws.take(options.turns)
    lines = ["| | ms a draw | step / (forward + backward) | quartiles |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name in found:
        low, middle, high = ratio(timed.times[name], timed.times["alone"])
        draw = 1e3 * median(draws.times[name])
        lines.append(f"| {name} | {draw:.2f} | {middle:.2f} | {low:.2f} – {high:.2f} |")
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        (options.out / "noise.md").write_text(text + "\n", encoding="utf-8")


def _peer(kernel: aeb.AEBKernel, draw: Draw) -> Peer:
    if kernel.compile:  # now, for it changes what draws the noise
        kernel.chain.compile()
        kernel.chain.compile_from = None
    kernel.chain.noise.draw = draw  # type: ignore[method-assign]
    return Peer(lambda: algorithm.step(kernel, kernel.chain))


if __name__ == "__main__":
    main()
