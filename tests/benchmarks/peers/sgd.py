# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""torch's own SGD: no prior and no noise."""

from __future__ import annotations

import copy

import torch

from ..workloads import Workload
from .base import Peer


def start(workload: Workload) -> Peer:
    """Forward, backward, and a step of :class:`torch.optim.SGD`, fused."""
    network = copy.deepcopy(workload.network)
    optimiser = torch.optim.SGD(
        network.parameters(), workload.step_size, momentum=1.0 - workload.friction, fused=True
    )

    def step() -> None:
        optimiser.zero_grad()
        x, y = workload.next_batch()
        loss = -workload.log_likelihood(network(x), y) * workload.scale
        loss.backward()
        optimiser.step()

    return Peer(step)
