# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Forward and backward of the likelihood alone, on a batch that lies ready."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from ..workloads import Workload
from .base import Peer


def start(workload: Workload) -> Peer:
    """By autograd, operation by operation."""
    return Peer(workload.alone())


def start_compiled(workload: Workload, mode: str | None = None) -> Peer:
    """
    Forward and backward as one function that torch compiles, which is faster than a compiled
    forward pass under autograd.

    :param mode: of :func:`torch.compile`.
    """
    network, (x, y) = workload.network, workload.batch
    params = {name: p.detach() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def total(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        output = functional_call(network, {**params, **own}, (x,))
        return workload.log_likelihood(output, y) * workload.scale

    gradient = torch.compile(torch.func.grad(total), mode=mode, dynamic=False)
    return Peer(lambda: gradient(params, x, y))
