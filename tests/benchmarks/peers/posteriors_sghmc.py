# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The sghmc of the package ``posteriors``, on a log posterior with a Normal prior by autograd."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..workloads import Workload
from .base import FRICTION, Peer

Tensors = dict[str, Tensor]


def start(workload: Workload) -> Peer:
    """Its update in place, which is the faster of its two."""
    with warnings.catch_warnings():  # of tensordict, about its own future
        warnings.simplefilter("ignore")
        import posteriors

    network = copy.deepcopy(workload.network)
    params = {name: p.detach().clone() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def log_posterior(params: Tensors, batch: None) -> tuple[Tensor, Any]:
        x, y = workload.batch()
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        output = functional_call(network, {**params, **own}, x)
        log_likelihood = workload.log_likelihood(output, y) * workload.scale
        sd = workload.priors.dense_scale
        log_prior = posteriors.diag_normal_log_prob(params, sd_diag=sd, normalize=False)
        return log_likelihood + log_prior, torch.empty(0)

    transform = posteriors.sgmcmc.sghmc.build(
        log_posterior, lr=workload.step_size, alpha=FRICTION, momenta=0.0
    )
    state = transform.init(params)
    return Peer(lambda: transform.update(state, None, inplace=True), workload.alone())
