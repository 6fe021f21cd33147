# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
CUDA graphs: forward and backward alone, and a whole step of the kernel. The latter is a trial, for
the table alone: step size and omega are those of the step that was captured, and the batch is one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyro_aeb.kernel import algorithm

from .peers.base import Peer
from .workloads import Step, Workload


def captured(call: Step, *generators: torch.Generator | None) -> Step:
    """What a call does on the device, as a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        if generator is not None:
            graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        kept = (call(), call)  # a graph holds no tensor: what it reads and writes must live on
    replay: Callable[[], None] = graph.replay

    def step() -> object:
        replay()
        return kept

    return step


def alone_in_a_graph(workload: Workload) -> Peer:
    """Forward and backward alone."""
    return Peer(captured(workload.alone()))


def step_in_a_graph(workload: Workload) -> Peer:
    """A step of SGHMC-SA with all latents, as in :mod:`.peers.ours`."""
    kernel = workload.kernel(seed=0)
    chain = kernel.chain
    algorithm.step(kernel, chain)
    batch, state, latents = chain.data.next(), chain.state, chain.latents
    excess = torch.as_tensor(latents.ssgl.excess).to(state.position)
    latents = latents._replace(ssgl=latents.ssgl._replace(excess=excess))
    numbers, weight = algorithm.step_numbers(kernel, 1), algorithm.sa_weight(kernel, chain, 1)

    def step() -> None:
        found = chain.posterior.evaluate_likelihood(state.position, latents, batch)
        moved, learned = chain.update(state, latents, found, chain.noise.draw(), numbers, weight)
        for new, own in zip((*moved, *learned.ssgl), (*state, *latents.ssgl), strict=True):
            own.copy_(new)

    return Peer(captured(step, *chain.generators))
