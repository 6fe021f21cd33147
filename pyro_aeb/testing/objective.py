# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Q by Pyro's own densities, as a reference for the package's closed forms.

Pyro traces the model at fixed values and adds up log densities, Jacobians of constrained sites and
the scales of plates. The density of a spike-and-slab site is replaced by the expectation over gamma
of its two components' log densities, given rho = P(gamma = 1): the objective that the updates
(4)-(7) maximise, and whose gradient is (2). None of the package's arithmetic is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.model.sites import unwrap
from pyro_aeb.priors import SpikeAndSlab
from pyro_aeb.priors.group import group_size

Model = Callable[..., Any]


@contextmanager
def whole_plates() -> Iterator[None]:
    """
    Make plates take all of their data within a ``with`` statement, whatever their
    ``subsample_size``.
    """
    owner: Any = next(kind for kind in pyro.plate.__mro__ if "_subsample" in vars(kind))
    original = owner._subsample

    def take_all(
        name: str, size: Any = None, subsample_size: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return original(name, size, None, *args, **kwargs)

    with mock.patch.object(owner, "_subsample", staticmethod(take_all)):
        yield


def objective(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    inclusion: Mapping[str, Tensor],
) -> Tensor:
    """
    Compute Q by Pyro's densities, up to a constant.

    :param model: a Pyro model.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param values: constrained values of all latent sites, and indices of plates that subsample.
    :param inclusion: rho of every SSGL site whose latents are learned; other sites have their own
        density.
    :returns: Q, a scalar.
    """
    with preserve_buffers(), preserve_random_state(), pyro.validation_enabled(False):
        conditioned = poutine.condition(model, data=dict(values))
        trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
    terms = []
    sites: Mapping[str, Any] = trace.nodes
    for name, site in sites.items():
        if site["type"] != "sample":
            continue
        if name in inclusion:
            group = group_size(site["fn"])
            spike, slab = component_log_joints(unwrap(site["fn"]), site["value"], group)
            rho = inclusion[name]
            terms.append(((1.0 - rho) * spike + rho * slab).sum())
            continue
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        if site["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
        terms.append((log_prob * site["scale"]).sum())
    return sum(terms[1:], start=terms[0])


def component_log_joints(
    fn: SpikeAndSlab, value: Tensor, group: float = 1.0
) -> tuple[Tensor, Tensor]:
    """
    Return log P(gamma, beta) for gamma = 0 and gamma = 1, equation (1), by Pyro's distributions.

    :param float group: number of weights that share a gamma, each of which counts it in part.
    """
    delta = torch.as_tensor(fn.delta, dtype=value.dtype, device=value.device)
    spike, slab = (density.log_prob(value) for density in fn.densities)
    return torch.log1p(-delta) / group + spike, delta.log() / group + slab
