# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Q as Pyro's own densities give it, to compare the package's closed forms with.

Pyro traces the model at given values and adds up log densities, Jacobians of constrained sites
and the scales of plates. In place of the density of a spike-and-slab site stands the expectation
over gamma of its two components' log densities; with rho = P(gamma = 1) that is what the updates
(4)-(7) maximise, and what the gradient (2) is of. Nothing of the package's arithmetic is used.
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
from pyro_aeb.model.structure import Structure
from pyro_aeb.model.tracing import unwrap
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.priors import SpikeAndSlab
from pyro_aeb.priors.group import group_size

Model = Callable[..., Any]


@contextmanager
def whole_plates() -> Iterator[None]:
    """Within it plates take all of their data, whatever their ``subsample_size``."""
    owner: Any = next(kind for kind in pyro.plate.__mro__ if "_subsample" in vars(kind))
    original = owner._subsample

    def all_of_it(
        name: str, size: Any = None, subsample_size: Any = None, *rest: Any, **further: Any
    ) -> Any:
        return original(name, size, None, *rest, **further)

    with mock.patch.object(owner, "_subsample", staticmethod(all_of_it)):
        yield


def objective(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    inclusion: Mapping[str, Tensor],
) -> Tensor:
    """
    Q at some values, up to what depends on none of them.

    :param model: a Pyro model.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param values: of every latent site, constrained, and the indices of plates that subsample.
    :param inclusion: rho of every SSGL site whose latents are learned; any other has its own
        density.
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
        terms.append(log_prob.sum() * site["scale"])
    return sum(terms[1:], start=terms[0])


def component_log_joints(
    fn: SpikeAndSlab, value: Tensor, group: float = 1.0
) -> tuple[Tensor, Tensor]:
    """
    log P(gamma, beta) for gamma = 0 and gamma = 1, equation (1), by Pyro's own distributions.

    :param SpikeAndSlab fn: the prior.
    :param Tensor value: weights, of any shape that broadcasts with the prior's.
    :param float group: how many weights share a gamma, each of which counts it in part.
    """
    delta = torch.as_tensor(fn.delta, dtype=value.dtype, device=value.device)
    spike, slab = (density.log_prob(value) for density in fn.densities)
    return torch.log1p(-delta) / group + spike, delta.log() / group + slab


def objective_at(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    posterior: Posterior,
    position: Tensor,
    latents: Mapping[str, Tensor],
    inclusion: Mapping[str, Tensor],
) -> Tensor:
    """
    :func:`objective` at a flat position, with the Jacobians of constrained sites.

    :param Tensor position: shape (D,).
    :param latents: values of the learned sites, and indices of plates.
    :param inclusion: as for :func:`objective`.
    """
    structure = posterior.structure
    unconstrained = structure.unflatten(position)
    values = {**structure.constrain(unconstrained), **latents}
    total = objective(model, args, kwargs, values, inclusion)
    for block in structure.general:
        if block.transform is not None:
            x = unconstrained[block.name]
            total = total + block.transform.log_abs_det_jacobian(x, values[block.name]).sum()
    return total


def by_site(structure: Structure, sparse: Tensor) -> dict[str, Tensor]:
    """A vector over the sparse slab, shape (P,), by SSGL site and of its shape."""
    parts = sparse.split([block.size for block in structure.sparse])
    return {b.name: p.reshape(b.shape) for b, p in zip(structure.sparse, parts, strict=True)}
