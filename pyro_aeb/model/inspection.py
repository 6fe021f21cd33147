# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Inspect a Pyro model: find its :class:`~pyro_aeb.model.structure.Structure`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_aeb.data.arguments import Arguments, leading_lengths, numbers_in
from pyro_aeb.data.not_tensors import advise_tensors
from pyro_aeb.errors import ModelError, first_line, is_domain_error
from pyro_aeb.latents.contract import LatentUpdate
from pyro_aeb.model.data_checks import (
    INDEX_ADVICE,
    check_lengths,
    check_loader_plates,
    check_observed,
)
from pyro_aeb.model.data_weights import check_weights
from pyro_aeb.model.fixed_parameters import warn_of_parameters
from pyro_aeb.model.learned_sites import check_forms, find_learned_sites
from pyro_aeb.model.links import (
    HandLinks,
    Links,
    check_links,
    check_plain,
    describe,
    find_links,
    is_sparse,
)
from pyro_aeb.model.lost_gradients import check_gradients
from pyro_aeb.model.missing_data import check_missing, explain_missing
from pyro_aeb.model.observed_sites import find_observed
from pyro_aeb.model.structure import (
    Block,
    Delta,
    NormalBlock,
    Sigma,
    SparseBlock,
    Structure,
    Width,
)
from pyro_aeb.model.summed_out import hidden_sites
from pyro_aeb.model.tracing import (
    Site,
    Tracer,
    check_continuous,
    init_to_default,
    is_plain,
    trace_provenance,
    unwrap,
)
from pyro_aeb.priors.group import group_size
from pyro_aeb.priors.scales import scale_terms

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
    sparse_blocks, sigmas, deltas, several = _sparse_blocks(latent, sparse, linked, uses)
    learned = find_learned_sites(latent, latents or {}, {*sparse, *linked.values()})
    check_forms(sites, learned, trace)
    taken = {*sparse, *linked.values(), *(site.name for site in learned)}
    rest = {n: s for n, s in latent.items() if n not in taken}
    dtype, device = _common_kind(observed, {n: latent[n]["value"] for n in (*sparse, *rest)})
    differentiated = [site.name for site in learned if site.update.derivatives]
    parents = check_gradients(sites, [*sparse, *rest, *differentiated], trace)
    normal = [n for n, s in rest.items() if n not in parents and _is_plain_normal(s)]
    return Structure(
        sparse=sparse_blocks,
        normal=tuple(_normal_block(rest[n]) for n in normal),
        general=tuple(_general_block(s) for n, s in rest.items() if n not in normal),
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
        width=_width(latent, linked),
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
            _check_tensors(sites, arguments)
            return sites
    except Exception as error:
        if not is_domain_error(error):
            _note_shapes(error, named_tensors(arguments))
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


def _check_tensors(sites: Mapping[str, Site], arguments: Mapping[str, Any]) -> None:
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


def _note_shapes(error: Exception, tensors: Mapping[str, Tensor]) -> None:
    """Add the shapes of the data to an error of the model, where Python can (from 3.11 on)."""
    shapes = ", ".join(f"{name!r} of shape {tuple(x.shape)}" for name, x in tensors.items())
    if shapes and (add_note := getattr(error, "add_note", None)):
        add_note(f"The data that the model ran on: {shapes}.")


def named_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the model's arguments, each once, by the names that the model gives them."""
    try:
        signature = inspect.signature(model)
        bound = signature.bind(*args, **kwargs).arguments
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = {n: v for n, v in bound.items() if signature.parameters[n].kind not in kinds}
    except (TypeError, ValueError):  # no signature, or arguments that the model will refuse itself
        named = {}
    named |= {**kwargs, **{f"argument {i}": value for i, value in enumerate(args)}}
    once, values = dict[str, Any](), set[int]()
    for name, value in named.items():
        if id(value) not in values:
            once[name] = value
        values.add(id(value))
    return once


def named_tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors and arrays in the model's arguments, by name."""
    tensors = dict[str, Tensor]()
    for name, value in arguments.items():
        tensors |= numbers_in(name, value)
    return tensors


def _describe_mismatch(error: str, tensors: Mapping[str, Tensor]) -> str:
    """Return an error that a distribution does not fit into its plate, with the cure."""
    summary, *_ = error.splitlines()
    length = summary.rpartition(" ")[2]
    event = (
        f"if a datum has {length} numbers (outputs of a network, say), make them one event of it "
        "by .to_event(1) on the distribution"
    )
    cure = INDEX_ADVICE
    if length not in {str(len(value)) for value in tensors.values() if value.dim()}:
        is_row = any(
            value.dim() > 1 and str(value.shape[-1]) == length for value in tensors.values()
        )
        cure = event if is_row else f"{cure}; or {event}"
    return (
        f"{summary}: the distribution's last axis is not the plate's, expected one datum for each "
        f"of the plate's indices; {cure}"
    )


@contextmanager
def explain_failures(arguments: Mapping[str, Any]) -> Iterator[None]:
    """
    Turn a model's failure on its arguments into a ModelError, where their kinds, dtypes, devices,
    lengths or missing numbers may be the cause.
    """
    tensors = named_tensors(arguments)
    try:
        with explain_missing(tensors):
            yield
    except (TypeError, KeyError, AttributeError) as error:
        if (advice := advise_tensors(arguments)) is None:
            raise
        raise ModelError(
            f"the model fails on its data: {advice}. The failure was: {first_line(error)}"
        ) from error
    except IndexError as error:
        lengths = {name: len(value) for name, value in tensors.items() if value.dim()}
        if len({*lengths.values()}) < 2:
            raise
        raise ModelError(
            f"the model fails on its data: {error}. Its arguments have different lengths, "
            f"{lengths}, expected as many data in all that the plate's indices pick from"
        ) from error
    except ValueError as error:
        if str(error).startswith("Expected scale > 0"):
            raise ModelError(
                f"the weights of data, poutine.scale(scale=...), are not all greater than 0, as "
                f"Pyro wants them: {error}; leave data out with poutine.mask(mask=w > 0), and give "
                "them any positive weight"
            ) from error
        if not str(error).startswith("Shape mismatch inside plate"):
            raise
        raise ModelError(_describe_mismatch(str(error), tensors)) from error
    except RuntimeError as error:
        if is_domain_error(error):
            raise
        if (kinds := _describe_kinds(first_line(error), tensors)) is None:
            raise
        raise ModelError(kinds) from error


def _describe_kinds(error: str, tensors: Mapping[str, Tensor]) -> str | None:
    """
    Return an error that data are of another dtype or device than torch's defaults, with the cure;
    None where they are not.
    """
    default = torch.zeros(())
    about_dtypes = "dtype" in error or "scalar type" in error  # in any torch version
    unusual = {
        name: value
        for name, value in tensors.items()
        if (value.dtype, value.device.type) != (default.dtype, default.device.type)
        # Classes are integers: no cause of a failure, unless torch names dtypes.
        and (value.is_floating_point() or about_dtypes)
    }
    if not unusual:
        return None
    kinds = ", ".join(f"{n!r} is {v.dtype} on {v.device}" for n, v in unusual.items())
    return (
        f"the model fails on its data: {kinds}, where priors of plain numbers are "
        f"{default.dtype} on {default.device}; convert the data, {_conversion(unusual)}, or "
        "use torch.set_default_dtype and torch.set_default_device, or give priors of the "
        f"data's kind. The failure was: {error}"
    )


def _conversion(unusual: Mapping[str, Tensor]) -> str:
    """Return the call that converts the first of some tensors to torch's defaults."""
    name = next((name for name in unusual if name.isidentifier()), "x")
    default = torch.zeros(())
    same_device = unusual.get(name, default).device.type == default.device.type
    place = "" if same_device else f'"{default.device.type}", '
    return f"{name}.to({place}{default.dtype})"


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


def _sparse_blocks(
    latent: Mapping[str, Site],
    sparse: list[str],
    links: Mapping[tuple[str, str], str],
    uses: Links,
) -> tuple[tuple[SparseBlock, ...], tuple[Sigma, ...], tuple[Delta, ...], dict[str, Tensor]]:
    """
    Return the blocks of the sparse sites, their distinct sigmas and deltas, and the
    ``sigmas_of_data`` of the structure.
    """
    blocks, sigmas, deltas = [], dict[Sigma, int](), dict[Delta, int]()
    for name in sparse:
        site = latent[name]
        of_sigma, of_delta = links.get((name, "sigma")), links.get((name, "delta"))
        fn, shape = unwrap(site["fn"]), site["value"].shape
        block = SparseBlock(
            name,
            shape,
            prior=type(fn),
            parameters={n: _number_or_tensor(v, shape) for n, v in fn.shape_parameters.items()},
            sigma=_add(_sigmas(site, of_sigma, latent, uses), sigmas)
            + uses.weights.get((name, "sigma"), 0),
            delta=_add(_deltas(site, of_delta, latent), deltas)
            + uses.weights.get((name, "delta"), 0),
            group=group_size(site["fn"]),
        )
        blocks.append(block)
    first = {sigma.site: index for sigma, index in reversed(sigmas.items())}
    several = {n: first[s] + i for n, (s, i) in uses.data.items() if isinstance(i, Tensor)}
    return tuple(blocks), tuple(sigmas), tuple(deltas), several


def _add(numbers: list[Any], known: dict[Any, int]) -> int:
    """Add a site's numbers to those that are known, in order; return the index of the first."""
    for number in numbers:
        known.setdefault(number, len(known))
    return known[numbers[0]]


def _sigmas(site: Site, link: str | None, latent: Mapping[str, Site], uses: Links) -> list[Sigma]:
    """Return the numbers of the site that a sparse site's sigma is linked to."""
    if link is None:
        return [Sigma(None, fixed=_fixed(site, "sigma"))]
    prior, shape = unwrap(latent[link]["fn"]), latent[link]["value"].shape
    of_data = {n: torch.as_tensor(index) for n, (s, index) in uses.data.items() if s == link}
    likelihoods = [
        frozenset(n for n, index in of_data.items() if bool((index == k).any()))
        for k in range(shape.numel())
    ]
    sigmas = [
        Sigma(link, likelihoods=names, shape=shape, index=k) for k, names in enumerate(likelihoods)
    ]
    if not isinstance(prior, dist.InverseGamma):
        terms = scale_terms(prior, shape)
        return [replace(s, terms=own) for s, own in zip(sigmas, terms, strict=True)]
    # sigma^2 ~ InverseGamma(nu / 2, nu lambda / 2)
    numbers = _numbers(shape, prior.concentration, prior.rate)
    return [
        replace(s, nu=2.0 * a, nu_lambda=2.0 * b) for s, (a, b) in zip(sigmas, numbers, strict=True)
    ]


def _deltas(site: Site, link: str | None, latent: Mapping[str, Site]) -> list[Delta]:
    """Return the numbers of the site that a sparse site's delta is linked to."""
    if link is None:
        return [Delta(None, fixed=_fixed(site, "delta"))]
    prior, shape = unwrap(latent[link]["fn"]), latent[link]["value"].shape
    numbers = _numbers(shape, prior.concentration1, prior.concentration0)
    return [Delta(link, None, a, b, shape, k) for k, (a, b) in enumerate(numbers)]


def _width(latent: Mapping[str, Site], links: Mapping[tuple[str, str], str]) -> Width | None:
    """Return the width of the spikes, where it is a latent site's."""
    for (_, parameter), site in links.items():
        if parameter == "v0":
            prior = unwrap(latent[site]["fn"])
            shape = latent[site]["value"].shape
            return Width(site, float(prior.concentration), float(prior.rate), shape)
    return None


def _numbers(shape: torch.Size, *parameters: Tensor) -> list[tuple[float, ...]]:
    """Return a prior's parameters for each number of a site of some shape."""
    columns = [torch.as_tensor(p).detach().expand(shape).flatten().tolist() for p in parameters]
    return list(zip(*columns, strict=True))


def _number_or_tensor(value: Any, shape: torch.Size) -> float | Tensor:
    """Return a parameter as one number where all are equal, else as a tensor of a shape."""
    if not isinstance(value, Tensor):
        return float(value)
    value = value.detach()
    first = value.reshape(-1)[0]
    if bool((value == first).all()):
        return float(first)
    return value.expand(shape).clone()


def _fixed(site: Site, parameter: str) -> float:
    value = _number_or_tensor(unwrap(site["fn"]).given[parameter], site["value"].shape)
    if isinstance(value, Tensor):
        raise ModelError(
            f"{describe(site)}: {parameter} is a tensor of different numbers, expected "
            "one number a site; split the site, or use adaptation=None"
        )
    return value


def _is_plain_normal(site: Site) -> bool:
    """Whether a site has a normal prior, unmasked and of scale 1."""
    return type(unwrap(site["fn"])) is dist.Normal and is_plain(site)


def _normal_block(site: Site) -> NormalBlock:
    shape = site["value"].shape
    fn = unwrap(site["fn"])
    loc, scale = (x.detach().expand(shape).clone() for x in (fn.loc, fn.scale))
    return NormalBlock(site["name"], shape, loc=loc, scale=scale)


def _general_block(site: Site) -> Block:
    value = site["value"]
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return Block(site["name"], value.shape)
    transform = biject_to(site["fn"].support)
    return Block(site["name"], transform.inv(value).shape, transform)


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
