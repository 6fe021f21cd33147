# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Steps of :class:`pyro_aeb.AEBKernel`: SGHMC-SA, all latents learned."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from ..counting import GRADIENT
from ..workloads import Step, Workload
from .base import Peer


def start(workload: Workload, **options: Any) -> Peer:
    """:param options: of the kernel."""
    kernel = workload.kernel(**options)
    likelihood = kernel.chain.posterior.likelihood
    gradient = likelihood.gradient

    def marked(*args: Any) -> Any:
        with torch.profiler.record_function(GRADIENT):
            return gradient(*args)

    def inside(call: Step) -> object:
        with mock.patch.object(likelihood, "gradient", marked):
            return call()

    return Peer(lambda: kernel._step(kernel.chain), workload.alone(), inside)
