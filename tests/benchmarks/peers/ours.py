# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Steps of :class:`pyro_aeb.AEBKernel`, all latents learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import pyro_aeb as aeb
from pyro_aeb.kernel import algorithm

from ..counting import BATCH, GRADIENT
from ..workloads import Step, Workload, compiled
from .base import Peer

STEPS_PER_DRAW = 100
"""The quickstart's program's."""

IN_BLOCKS = "FL"
"""The small models, whose compiled steps are made in blocks."""

RECORDED = 600
"""Steps before the timing, by when the operations have been recorded again for the last time."""


def start(workload: Workload, compile: bool = False, **options: Any) -> Peer:
    """
    Steps, without the draws.

    :param bool compile: whether a step is compiled.
    :param options: of the kernel.
    """
    kernel = workload.kernel(compile=compiled(compile), **options)
    chain = kernel.chain

    def inside(call: Step) -> object:
        with (
            mock.patch.object(chain.data, "next", _marked(BATCH, chain.data.next)),
            mock.patch.object(
                chain.posterior.likelihood,
                "evaluate",
                _marked(GRADIENT, chain.posterior.likelihood.evaluate),
            ),
        ):
            return call()

    if compile and workload.name in IN_BLOCKS and "pruning" not in options:
        _make_steps(kernel, RECORDED)
        return Peer(lambda: _make_steps(kernel, STEPS_PER_DRAW), STEPS_PER_DRAW)
    return Peer(lambda: algorithm.step(kernel, chain), inside=inside)


def _make_steps(kernel: aeb.AEBKernel, left: int) -> None:
    while left:
        left -= algorithm.steps(kernel, kernel.chain, left)


def start_traced(workload: Workload) -> Peer:
    """Steps whose operations are recorded and run one by one, as where there is no compiler."""
    missing = mock.patch("torch._inductor.compile", side_effect=RuntimeError("no compiler"))
    with missing, warnings.catch_warnings():
        warnings.simplefilter("ignore", aeb.CompileWarning)
        return start(workload, compile=True)


def start_run(workload: Workload, **options: Any) -> Peer:
    """Steps compiled, with a draw of all sites every :data:`STEPS_PER_DRAW`, as in a run."""
    kernel = workload.kernel(
        compile=compiled(True), steps_per_draw=STEPS_PER_DRAW, save=None, **options
    )
    params = kernel.initial_params

    _make_steps(kernel, RECORDED)

    def call() -> None:
        nonlocal params
        params = kernel.sample(params)

    return Peer(call, STEPS_PER_DRAW)


def _marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, as a range of the profiler's."""

    def marked(*args: Any) -> Any:
        with torch.profiler.record_function(name):
            return call(*args)

    return marked
