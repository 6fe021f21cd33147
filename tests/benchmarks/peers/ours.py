# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Steps of :class:`pyro_aeb.AEBKernel`: SGHMC-SA, all latents learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from pyro_aeb.kernel import algorithm

from ..counting import BATCH, GRADIENT
from ..workloads import Step, Workload
from .base import Peer


def start(workload: Workload, **options: Any) -> Peer:
    """:param options: of the kernel."""
    kernel = workload.kernel(**options)
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

    return Peer(lambda: algorithm.step(kernel, kernel.chain), workload.alone(), inside)


def _marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, as a range of the profiler's."""

    def marked(*args: Any) -> Any:
        with torch.profiler.record_function(name):
            return call(*args)

    return marked
