# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Inspect a Pyro model: find its :class:`~pyro_aeb.model.structure.Structure`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.arguments import Arguments, leading_lengths
from pyro_aeb.data.not_tensors import advise_tensors
from pyro_aeb.errors import ModelError, first_line, is_domain_error
from pyro_aeb.latents.contract import LatentUpdate
from pyro_aeb.model.blocks import (
    general_block,
    is_plain_normal,
    normal_block,
    sparse_blocks,
    width_of,
)
from pyro_aeb.model.data_checks import check_lengths, check_loader_plates, check_observed
from pyro_aeb.model.data_weights import check_weights
from pyro_aeb.model.fixed_parameters import warn_of_parameters
from pyro_aeb.model.initial_values import init_to_default
from pyro_aeb.model.learned_sites import check_forms, find_learned_sites
from pyro_aeb.model.links import HandLinks, check_links, check_plain, find_links, is_sparse
from pyro_aeb.model.lost_gradients import check_gradients
from pyro_aeb.model.missing_data import check_missing
from pyro_aeb.model.model_failures import (
    explain_failures,
    named_arguments,
    named_tensors,
    note_shapes,
)
from pyro_aeb.model.observed_sites import find_observed
from pyro_aeb.model.sites import Site, check_continuous
from pyro_aeb.model.structure import Structure
from pyro_aeb.model.summed_out import hidden_sites
from pyro_aeb.model.tracing import Tracer, trace_provenance

STARTS = 10
"""How many first values are tried where a model fails at zero."""


def inspect_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    adapt: bool,
    links: HandLinks | None = None,
    loader_sizes: frozenset[int] | None = None,
    latents: Mapping[str, LatentUpdate] | None = None,
    init_strategy: Callable[..., Any] = init_to_default,
) -> Structure:
    """
    Find the structure of a model. Random number generators and module buffers are unchanged.

    :param bool adapt: whether the latents of spike-and-slab sites are learned. If not, all
        continuous latents, those sites among them, are sampled under the model's own prior.
    :param links: by hand, spike-and-slab site to ``{"delta": site, "sigma": site}``.
    :param loader_sizes: where the arguments are a batch of a DataLoader, the sizes that its data
        set may have (empty if unknown); None where they are the same at every step.
    :param latents: updates of latent sites that are learned, by site.
    :param init_strategy: gives values where a model is inspected that fails at zero.
    :raises ModelError: if the model or the data cannot be sampled.
    """
    arguments, trace = named_arguments(model, args, kwargs), Tracer(model, args, kwargs)
    sites, hidden = _find_sites(trace, arguments, init_strategy), hidden_sites(model)
    warn_of_parameters(trace.parameters)
    subsamples = {n: s for n, s in sites.items() if site_is_subsample(cast(Any, s))}
    plates = {n: (s["fn"].size, len(s["value"])) for n, s in subsamples.items()}
    sites = {n: s for n, s in sites.items() if not (n in plates or _is_deterministic(s))}
    latent = {n: s for n, s in sites.items() if not s["is_observed"]}
    observed = {n: s for n, s in sites.items() if s["is_observed"]}
    _check_latent(latent)
    kinds = find_observed(model, Arguments(args, kwargs), sites, trace)
    _check_data(named_tensors(arguments), sites, hidden, subsamples, kinds.computed, trace)
    data = {n: s for n, s in observed.items() if n in kinds.data} | hidden
    _check_loader(data, subsamples, loader_sizes, Arguments(args, kwargs))
    sparse = [n for n, s in latent.items() if adapt and is_sparse(s)]
    tracked = trace_provenance(trace) if sparse else {}
    linked = find_links(latent, tracked, sparse, {} if links is None else links)
    uses = check_links(sites, sparse, linked, trace, loader_sizes is not None)
    blocks, sigmas, deltas, several = sparse_blocks(latent, sparse, linked, uses)
    learned = find_learned_sites(latent, latents or {}, {*sparse, *linked.values()})
    check_forms(sites, learned, trace)
    taken = {*sparse, *linked.values(), *(site.name for site in learned)}
    rest = {n: s for n, s in latent.items() if n not in taken}
    dtype, device = _common_kind(observed, {n: latent[n]["value"] for n in (*sparse, *rest)})
    differentiated = [site.name for site in learned if site.update.derivatives]
    parents = check_gradients(sites, [*sparse, *rest, *differentiated], trace)
    normal = [n for n, s in rest.items() if n not in parents and is_plain_normal(s)]
    return Structure(
        sparse=blocks,
        normal=tuple(normal_block(rest[n]) for n in normal),
        general=tuple(general_block(s) for n, s in rest.items() if n not in normal),
        sigmas=sigmas,
        deltas=deltas,
        observed=tuple(data),
        reparametrised=tuple(n for n in observed if n in kinds.reparametrised),
        plates={n: plates[n] for n, s in subsamples.items() if not _has_own_indices(s)},
        dims={n: _dims(s) for n, s in (sites | hidden).items()},
        observations={n: s["value"] for n, s in data.items() if _is_whole(s)},
        dtype=dtype,
        device=device,
        learned=learned,
        changed_buffers=trace.changed_buffers,
        sigmas_of_data=several,
        width=width_of(latent, linked),
        parents=parents,
    )


def _is_deterministic(site: Site) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _check_loader(
    data: Mapping[str, Site],
    subsamples: Mapping[str, Site],
    sizes: frozenset[int] | None,
    arguments: Arguments,
) -> None:
    if sizes is not None:
        check_loader_plates(data, subsamples, sizes, leading_lengths(arguments))


def _find_sites(
    trace: Tracer, arguments: Mapping[str, Any], strategy: Callable[..., Any]
) -> dict[str, Site]:
    """
    Trace the model at feasible values, zero in unconstrained space; where it has no density there,
    at values that a strategy gives, which become the tracer's first values.

    :raises ModelError: if it has none there either.
    """
    try:
        with explain_failures(arguments):
            sites = trace({}, validate=True)
            _check_tensors(sites)
            return sites
    except Exception as error:
        if not is_domain_error(error):
            note_shapes(error, named_tensors(arguments))
            raise
        failure = error
    for seed in range(STARTS):
        try:
            trace.first_values = trace.draw(strategy, seed)
            return trace({}, validate=True)
        except Exception as error:
            if not is_domain_error(error):
                raise
            failure = error
    raise ModelError(
        f"the model fails at zero (in unconstrained space) and at {STARTS} first values of "
        f"init_strategy: {first_line(failure)} Give values where it has a density, by "
        "init_strategy=init_to_value(values=...) or pyro.sample(..., infer={'init_value': ...})"
    ) from failure


def _check_tensors(sites: Mapping[str, Site]) -> None:
    """
    :raises TypeError: if an observed value is an array, a series or a list.
    """
    for name, site in sites.items():
        if site["is_observed"] and advise_tensors({name: site["value"]}) is not None:
            kind = type(site["value"]).__name__
            raise TypeError(
                f"observed site {name!r} has a value that is a {kind}, expected a tensor, "
                "obs=torch.tensor(...)"
            )


def _has_own_indices(site: Site) -> bool:
    """Whether the model gives a plate its indices itself, ``plate(..., subsample=indices)``."""
    return site["fn"].subsample_size is None and len(site["value"]) < site["fn"].size


def _check_data(
    tensors: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    hidden: dict[str, Site],
    subsamples: Mapping[str, Site],
    computed: Collection[str],
    trace: Tracer,
) -> None:
    plates = {n: (s["fn"].size, len(s["value"])) for n, s in subsamples.items()}
    check_missing(tensors, sites, plates, trace)
    observed = {n: s for n, s in sites.items() if s["is_observed"]}
    check_observed(observed | hidden, plates, {*computed, *hidden})
    check_lengths(observed, subsamples, tensors)
    check_weights(sites, trace)


def _check_latent(latent: Mapping[str, Site]) -> None:
    for name, site in latent.items():
        check_continuous(site)
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.size != frame.full_size:
                raise ModelError(
                    f"latent site {name!r} is inside plate {frame.name!r}, which is subsampled "
                    f"({frame.size} of {frame.full_size}): a latent variable of every datum is not "
                    "supported; if it is data, observe it with obs=, else move it out of the plate "
                    "or sum it out"
                )
        if is_sparse(site):
            check_plain(site)


def _dims(site: Site) -> tuple[str | None, ...]:
    """Return the plate of each axis of a site's value."""
    value = site["value"]
    dims: list[str | None] = [None] * value.dim()
    for frame in site["cond_indep_stack"]:
        if frame.dim is not None:
            axis = value.dim() - site["fn"].event_dim + frame.dim
            if axis >= 0 and value.shape[axis] == frame.size:
                dims[axis] = frame.name
    return tuple(dims)


def _is_whole(site: Site) -> bool:
    """Whether a site's value is a tensor of all the data: neither a subsample nor a factor."""
    value, frames = site["value"], site["cond_indep_stack"]
    whole = all(frame.size == frame.full_size for frame in frames)
    return isinstance(value, Tensor) and value.numel() > 0 and whole


def _common_kind(
    observed: Mapping[str, Site], values: Mapping[str, Tensor]
) -> tuple[torch.dtype, torch.device]:
    kinds = {(value.dtype, value.device) for value in values.values()}
    if not kinds:
        raise ModelError("the model has no continuous latent site to sample; see pyro.sample")
    if len(kinds) > 1:
        sites = ", ".join(f"{n!r}: {v.dtype} on {v.device}" for n, v in values.items())
        raise ModelError(
            f"the latent sites have different dtypes or devices ({sites}), expected the same for "
            "all; give the priors' parameters as tensors of one dtype on one device"
        )
    dtype, device = kinds.pop()
    if dtype not in (torch.float32, torch.float64):
        raise ModelError(
            f"the latent sites are {dtype}, expected float32 or float64: steps are smaller than "
            "half precision resolves; give the priors float32 parameters, and use "
            "torch.autocast inside the model where products may be in half precision"
        )
    for name, site in observed.items():
        value = site["value"]
        is_float = isinstance(value, Tensor) and value.dim() and value.is_floating_point()
        if is_float and value.dtype != dtype:
            raise ModelError(
                f"observed site {name!r} has values of {value.dtype}, expected {dtype}, as the "
                f"latent sites have; convert the data, {name}.to({dtype}), or use "
                "torch.set_default_dtype"
            )
    return dtype, device
