# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A straightforward kernel in Pyro: a trace of the model at every step, its ``log_prob_sum``, all
priors by autograd, one update a site. The model is that of :class:`pyro_aeb.AEBKernel`, priors and
subsamples included; delta and sigma squared are sampled like all other sites, in unconstrained
space.
"""

from __future__ import annotations

import math

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ..workloads import Workload
from .base import Peer


def start(workload: Workload) -> Peer:
    """SGHMC on the trace's density; SGLD where that is the workload's."""
    pyro.clear_param_store()
    model, args = workload.model, workload.one_batch
    transforms, params = {}, {}
    for name, site in poutine.trace(model).get_trace(*args).iter_stochastic_nodes():
        if not poutine.util.site_is_subsample(site):
            transforms[name] = biject_to(site["fn"].support)
            params[name] = transforms[name].inv(site["value"]).detach().clone()
    momentum = {name: torch.zeros_like(value) for name, value in params.items()}
    eta, friction = workload.step_size, workload.friction
    sd = math.sqrt(2.0 * eta * friction)

    def log_density() -> Tensor:
        values, jacobian = {}, 0.0
        for name, transform in transforms.items():
            values[name] = transform(params[name])
            jacobian += transform.log_abs_det_jacobian(params[name], values[name]).sum()
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args)
        return trace.log_prob_sum() + jacobian

    def step() -> None:
        for value in params.values():
            value.requires_grad_()
        gradients = torch.autograd.grad(log_density(), list(params.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(params.items(), gradients, strict=True):
                v = momentum[name]
                v.mul_(1.0 - friction).add_(gradient, alpha=eta).add_(torch.randn_like(v), alpha=sd)
                value.add_(v)

    return Peer(step)
