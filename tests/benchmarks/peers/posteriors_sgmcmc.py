# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The package ``posteriors``, on a log posterior with a Normal prior by autograd."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..workloads import FRICTION, Workload
from .base import Peer

Tensors = dict[str, Tensor]


def start(workload: Workload, compiled: bool = False) -> Peer:
    """
    SGHMC, or SGLD where that is the workload's.

    :param bool compiled: whether its update is compiled, by :func:`torch.compile`; the one that is
        not in place then, otherwise the one in place, each the faster of the two.
    """
    with warnings.catch_warnings():  # of tensordict, about its own future
        warnings.simplefilter("ignore")
        import posteriors

    network = copy.deepcopy(workload.network)
    params = {name: p.detach().clone() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def log_posterior(params: Tensors, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        x, y = batch
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        output = functional_call(network, {**params, **own}, x)
        log_likelihood = workload.log_likelihood(output, y) * workload.scale
        sd = workload.priors.dense_scale
        log_prior = posteriors.diag_normal_log_prob(params, sd_diag=sd, normalize=False)
        return log_likelihood + log_prior, torch.empty(0)

    sgmcmc, eta = posteriors.sgmcmc, workload.step_size
    if workload.friction == 1.0:
        transform = sgmcmc.sgld.build(log_posterior, lr=eta)
    else:
        transform = sgmcmc.sghmc.build(log_posterior, lr=eta, alpha=FRICTION, momenta=0.0)
    state = transform.init(params)
    update = lambda state, batch: transform.update(state, batch, inplace=not compiled)  # noqa: E731
    if compiled:
        update = torch.compile(update, dynamic=False)

    def call() -> None:
        nonlocal state
        state, _ = update(state, workload.next_batch())

    return Peer(call)
