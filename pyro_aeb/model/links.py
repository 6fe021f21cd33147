# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Link the parameters of spike-and-slab priors to latent sites, and check that (6) and (7) hold.

Provenance proposes the links: a sparse site's ``delta`` comes from a Beta site, its ``sigma`` from
an InverseGamma site or one of another prior of scales, the width ``v0`` of all its Laplace spikes
from an InverseGamma site. Traces at perturbed values verify them: ``v0`` must be its site's value,
``delta`` the Beta site's, ``sigma`` the square root of the InverseGamma site's or the
other's value, or for each weight one number of these; the scale of an observed Normal or StudentT
site must be a multiple of a sigma or unchanged, and nothing else may depend on them. A link that
provenance lost (``float(x)``, ``x.item()``) and a form without a closed-form update are errors,
never a silent wrong answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.ops.provenance import get_provenance
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError
from pyro_aeb.model.perturbation import has_same_density, is_close, trace_perturbed
from pyro_aeb.model.sites import Site, is_plain, unwrap
from pyro_aeb.model.tracing import Tracer
from pyro_aeb.priors import Laplace, SpikeAndSlab
from pyro_aeb.priors.scales import SCALE_PRIORS

HandLinks = Mapping[str, Mapping[str, str]]
"""Sparse site to ``{"delta": Beta site, "sigma": site of sigma or its square, "v0": site}``."""

PRIORS: Mapping[str, tuple[type, ...]] = {
    "delta": (dist.Beta,),
    "sigma": (dist.InverseGamma, *SCALE_PRIORS),
    "v0": (dist.InverseGamma,),
}
LIKELIHOODS = (dist.Normal, dist.StudentT)
"""Distributions of data whose scale may be a multiple of sigma."""

CURES = {
    "delta": "delta may be a number or the value of a pyro.sample site with a Beta prior",
    "sigma": "sigma may be a number, the square root of the value of a pyro.sample site with an "
    "InverseGamma prior, sigma2.sqrt(), or the value itself of one with a "
    f"{', '.join(kind.__name__ for kind in SCALE_PRIORS)} prior",
    "v0": "the width v0 of Laplace spikes, the same for all sparse weights, may be a number or the "
    "value of one pyro.sample site with an InverseGamma prior, such as aeb.priors.spike_width's",
}


def find_links(
    latent: Mapping[str, Site], tracked: Mapping[str, Site], sparse: list[str], by_hand: HandLinks
) -> dict[tuple[str, str], str]:
    """
    Find the latent site that each spike-and-slab parameter comes from, by provenance or by hand.

    :param tracked: the sites of a trace with provenance; empty if the model cannot run with it.
    :returns: (sparse site, ``"delta"`` or ``"sigma"``) to latent site.
    :raises ModelError: if a link is ambiguous or leads to a prior without a closed-form update.
    """
    _check_hand_links(latent, sparse, by_hand)
    links, checked = {}, set()
    for name in sparse:
        where = describe(latent[name])
        fn = unwrap(latent[name]["fn"])
        provenance: dict[str, frozenset] = dict.fromkeys(fn.given, frozenset())
        if name in tracked:
            provenance = unwrap(tracked[name]["fn"]).parameter_provenance
        for parameter in fn.shape_parameters:
            origins = provenance[parameter] & latent.keys()
            if origins and not (parameter == "v0" and _is_width(latent[name], origins, latent)):
                raise ModelError(
                    f"{where}: {parameter} depends on the latent site(s) "
                    f"{sorted(origins)}, expected a number or a fixed tensor: {parameter} is not "
                    f"learned; choose it by cross-validation; {CURES['v0']}"
                )
        for parameter in PRIORS:
            origins = provenance.get(parameter, frozenset()) & latent.keys()
            if parameter in by_hand.get(name, {}):
                origins = frozenset({by_hand[name][parameter]})
            if len(origins) > 1:
                raise ModelError(
                    f"{where}: {parameter} depends on the latent sites "
                    f"{sorted(origins)}, expected one; {CURES[parameter]}; or say which with "
                    f"links={{{name!r}: {{{parameter!r}: ...}}}}"
                )
            for site in origins:
                links[name, parameter] = site
                if (site, parameter) not in checked:
                    checked.add((site, parameter))
                    _check_prior(where, parameter, latent[site], tracked.get(site), latent.keys())
                    check_plain(latent[site])
    _check_widths(latent, sparse, links)
    return links


def _is_width(site: Site, origins: Collection[str], latent: Mapping[str, Site]) -> bool:
    """Whether v0 of a site may be learned, which comes from other sites."""
    kinds = [unwrap(latent[origin]["fn"]) for origin in origins]
    return _has_laplace_spike(site) and all(isinstance(kind, PRIORS["v0"]) for kind in kinds)


def _has_laplace_spike(site: Site) -> bool:
    """Whether the spike of a site's prior is a Laplace of scale v0."""
    fn = unwrap(site["fn"])
    spike, _ = fn.parts
    return isinstance(spike, Laplace) and spike.v is fn.given.get("v0")


def _check_widths(
    latent: Mapping[str, Site], sparse: list[str], links: Mapping[tuple[str, str], str]
) -> None:
    """Check that a width v0 that is learned is one number, that of all sparse sites."""
    widths = {name: links.get((name, "v0")) for name in sparse}
    sites = {site for site in widths.values() if site is not None}
    for site in sites:
        if {*widths.values()} != {site}:
            found = f"v0 comes from {widths}"
        elif (size := latent[site]["value"].numel()) > 1:
            found = f"v0 comes from site {site!r} of {size} numbers"
        elif site in (of for (_, parameter), of in links.items() if parameter != "v0"):
            found = f"site {site!r} is both v0 and sigma"
        elif not all(_has_laplace_spike(latent[name]) for name in sparse):
            found = f"v0 of {sparse} is not the scale of a Laplace spike"
        else:
            continue
        raise ModelError(f"{found}: expected one width that is learned; {CURES['v0']}")


def _check_hand_links(latent: Mapping[str, Site], sparse: list[str], by_hand: HandLinks) -> None:
    if not isinstance(by_hand, Mapping) or not all(
        isinstance(parameters, Mapping) for parameters in by_hand.values()
    ):
        raise ModelError(
            f"links is {by_hand!r}, expected sparse site to parameter to latent site, "
            "{'beta': {'delta': 'delta', 'sigma': 'sigma2'}}"
        )
    for name, parameters in by_hand.items():
        if name not in sparse:
            raise ModelError(f"links: {name!r} is not a sparse site; sparse sites are {sparse}")
        for parameter, site in parameters.items():
            if parameter not in PRIORS:
                raise ModelError(
                    f"links: {parameter!r} of site {name!r} is not 'delta', 'sigma' or 'v0'"
                )
            if site not in latent:
                raise ModelError(
                    f"links: {parameter!r} of site {name!r} names {site!r}, which is no latent "
                    f"site; latent sites are {sorted(latent)}"
                )


def _check_prior(
    sparse: str, parameter: str, site: Site, tracked: Site | None, latent: Set[str]
) -> None:
    """Check that a linked site has a prior with an update, with fixed parameters."""
    fn, is_sigma = unwrap(site["fn"]), parameter == "sigma"
    where = f"{sparse}: {parameter} comes from site {site['name']!r}"
    if not isinstance(fn, PRIORS[parameter]):
        raise ModelError(
            f"{where} ~ {type(fn).__name__}, which has no closed-form update; {CURES[parameter]}; "
            "or use adaptation=None, which samples it"
            + (
                ", or fix sigma and learn the likelihood's scale by latents.NewtonStep()"
                if is_sigma
                else ""
            )
        )
    if tracked is not None:
        if origins := _prior_provenance(unwrap(tracked["fn"])) & latent:
            raise _hyperprior_error(sparse, parameter, site["name"], str(sorted(origins)))


def check_plain(site: Site) -> None:
    """
    :raises ModelError: if a site with a closed-form update is scaled or masked.
    """
    if not is_plain(site):
        raise ModelError(
            f"{describe(site)} is under poutine.scale or poutine.mask, or has a mask, which "
            "closed-form updates do not support; put the handler around the observed sites only"
        )


def _hyperprior_error(sparse: str, parameter: str, site: str, origin: str) -> ModelError:
    return ModelError(
        f"{sparse}: {parameter} comes from site {site!r}, whose own prior depends on {origin}, "
        "expected fixed numbers: the closed-form update covers one level; use adaptation=None, "
        "which samples all sites"
    )


def _prior_provenance(fn: Any) -> frozenset[str]:
    return get_provenance([getattr(fn, name) for name in fn.arg_constraints])


def read_parameter(parameter: str, site: Site, value: Tensor) -> Tensor:
    """Return the delta or sigma that its site's value stands for."""
    is_variance = parameter == "sigma" and isinstance(unwrap(site["fn"]), dist.InverseGamma)
    return value.sqrt() if is_variance else value


class Links(NamedTuple):
    """
    The uses of the numbers of the linked sites.

    :param weights: (sparse site, ``"delta"`` or ``"sigma"``) to the index, in the flat value of the
        linked site, of the parameter of every weight: a tensor of the sparse site's shape, or one
        number for all.
    :param data: observed site whose scale is a multiple of a sigma to the site of the sigma and its
        index, likewise, with an axis of length 1 where the index is the same for all data.
    """

    weights: Mapping[tuple[str, str], int | Tensor]
    data: Mapping[str, tuple[str, int | Tensor]]


def check_links(
    sites: Mapping[str, Site],
    sparse: Collection[str],
    links: Mapping[tuple[str, str], str],
    trace: Tracer,
    by_loader: bool = False,
) -> Links:
    """
    Check the links by perturbation, and find the numbers that they use and the likelihoods whose
    scale is a multiple of sigma.

    :param sites: all sites of a trace at feasible values.
    :param bool by_loader: whether the arguments are those of one batch of several.
    :raises ModelError: if anything else depends on the linked sites.
    """
    if not sparse:
        return Links({}, {})
    learned = sorted({*links.values()})
    feasible = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    values, before = trace_perturbed(sites, feasible, feasible.keys() - learned, trace)
    _check_no_lost_links(sites, before, sparse, links)
    spaced, far = before, values
    scales = sorted({site for (_, parameter), site in links.items() if parameter == "sigma"})
    if len(scales) > 1 or any(values[site].numel() > 1 for site in learned):
        far = values | _space(sites, values, learned)
        spaced = trace(far)
    values, after = trace_perturbed(sites, values, learned, trace)
    weights = _index_weights(spaced, links, far)
    _check_form(after, links, values, weights)
    at_first, *moved = (_sigmas_at(v, sites, scales) for v in (feasible, far, values))
    owners = [site for site in scales for _ in range(feasible[site].numel())]
    sigmas = _Sigmas(owners, *(sigma / at_first for sigma in moved))
    data = {}
    for name in before.keys() - learned - set(sparse):
        if not has_same_density(before[name], after[name]):
            traced = before[name], spaced[name], after[name]
            site, index = data[name] = _find_sigma(*traced, sigmas, learned)
            _check_axes(before[name], index, sites[site])
    _check_batches(sites, data, by_loader)
    return Links(weights, data)


def _space(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """
    Return values of some sites, with every number moved by an amount of its own. The amounts are as
    different as can be, also between sigmas of sites that have them or their squares.
    """
    sizes = [values[name].numel() for name in names]
    amounts = torch.linspace(0.5, 1.5, sum(sizes), dtype=torch.float64).split(sizes)
    spaced = {}
    for name, amount in zip(names, amounts, strict=True):
        fn, value = sites[name]["fn"], values[name]
        transform = biject_to(fn.support)
        amount = amount * (0.5 if isinstance(unwrap(fn), tuple(SCALE_PRIORS)) else 1.0)
        spaced[name] = transform(transform.inv(value) + amount.reshape(value.shape).to(value))
    return spaced


class _Sigmas(NamedTuple):
    """
    The sigmas that are learned.

    :param sites: the site of each.
    :param spaced: by how much each differs between the first trace and the spaced one.
    :param after: by how much each differs between the first trace and the last one.
    """

    sites: list[str]
    spaced: Tensor
    after: Tensor


def _sigmas_at(
    values: Mapping[str, Tensor], sites: Mapping[str, Site], names: Collection[str]
) -> Tensor:
    """Return the sigmas of some sites at some values, in one vector."""
    sigmas = [read_parameter("sigma", sites[name], values[name]).reshape(-1) for name in names]
    return torch.cat(sigmas or [torch.empty(0)])


def _index(values: Tensor, numbers: Tensor) -> int | Tensor:
    """
    Return the index of the nearest number for each value, with an axis of length 1 where it is the
    same all along; one number where it is the same for all.
    """
    if numbers.numel() == 1:
        return 0
    ordered, order = numbers.reshape(-1).sort()
    middle = 0.5 * (ordered[1:] + ordered[:-1])
    index = order[torch.searchsorted(middle, values.contiguous())]
    for axis in range(index.dim()):
        first = index.narrow(axis, 0, 1)
        index = first if torch.equal(first.expand_as(index), index) else index
    return int(index) if index.numel() == 1 else index


def _index_weights(
    spaced: Mapping[str, Site],
    links: Mapping[tuple[str, str], str],
    values: Mapping[str, Tensor],
) -> dict[tuple[str, str], int | Tensor]:
    """Return the indices of :class:`Links` at values that differ."""
    weights: dict[tuple[str, str], int | Tensor] = {}
    for (name, parameter), site in links.items():
        used = _parameter(spaced[name], parameter)
        index = _index(used, read_parameter(parameter, spaced[site], values[site]))
        weights[name, parameter] = index if isinstance(index, int) else index.expand(used.shape)
    return weights


def _check_axes(site: Site, index: int | Tensor, sigma: Site) -> None:
    """Check that data of one plate have the same sigma, unless it is a plate of sigma's."""
    shared = {frame.name for frame in sigma["cond_indep_stack"]}
    for frame in site["cond_indep_stack"]:
        if isinstance(index, int) or frame.dim is None or frame.name in shared:
            continue
        axis = index.dim() + frame.dim - site["fn"].event_dim
        if axis >= 0 and index.shape[axis] > 1:
            raise ModelError(
                f"observed site {site['name']!r} has different numbers of {sigma['name']!r} along "
                f"plate {frame.name!r}, expected one sigma for all of a plate's data, which a "
                f"batch may change; sample {sigma['name']!r} in that plate, if it has one number "
                "for each of its indices, make several outputs one event by .to_event(1), or fix "
                "the sigma of the sparse prior and learn this one by latents.NewtonStep()"
            )


def _check_batches(
    sites: Mapping[str, Site], data: Mapping[str, tuple[str, int | Tensor]], by_loader: bool
) -> None:
    """Check that data that change take all numbers of a sigma: else they may be a batch's own."""
    used: dict[str, set[int]] = {}
    for site, index in data.values():
        used.setdefault(site, set()).update(torch.as_tensor(index).flatten().tolist())
    for name, (site, _) in data.items():
        frames = sites[name]["cond_indep_stack"]
        is_batch = by_loader or any(frame.size != frame.full_size for frame in frames)
        count = sites[site]["value"].numel()
        if is_batch and len(used[site]) < count:
            raise ModelError(
                f"observed site {name!r} has minibatches, and the data take {len(used[site])} of "
                f"the {count} numbers of {site!r}, which may be others in the next batch, expected "
                "all of them to be some data's; give the sigma of the data a site of its own"
            )


def _check_no_lost_links(
    sites: Mapping[str, Site],
    perturbed: Mapping[str, Site],
    sparse: Collection[str],
    links: Mapping[tuple[str, str], str],
) -> None:
    """Check that no learned site and no unlinked sparse parameter depends on the other sites."""
    first = {site: key for key, site in reversed([*links.items()])}
    for site, (name, parameter) in first.items():
        if not has_same_density(sites[site], perturbed[site]):
            where = describe(sites[name])
            raise _hyperprior_error(where, parameter, site, "another latent site")
    for name in sparse:
        where = describe(sites[name])
        for parameter in unwrap(sites[name]["fn"]).given:
            if (name, parameter) in links:
                continue
            if is_close(_parameter(sites[name], parameter), _parameter(perturbed[name], parameter)):
                continue
            priors = PRIORS.get(parameter, ())
            candidates = [n for n, s in sites.items() if isinstance(s["fn"], priors)]
            if parameter not in ("delta", "sigma") and not candidates:
                raise ModelError(
                    f"{where}: {parameter} changes with the latent sites, expected a "
                    f"number or a fixed tensor; {CURES['v0']}"
                )
            hint = repr(candidates[0]) if len(candidates) == 1 else "..."
            raise ModelError(
                f"{where}: {parameter} changes with a latent site, but which one is "
                "lost: float(x) and x.item() lose it, and so does a model that cannot run on "
                "tensors with provenance; pass the tensor itself, or say which with "
                f"links={{{name!r}: {{{parameter!r}: {hint}}}}}"
            )


def _check_form(
    perturbed: Mapping[str, Site],
    links: Mapping[tuple[str, str], str],
    values: Mapping[str, Tensor],
    weights: Mapping[tuple[str, str], int | Tensor],
) -> None:
    """Check that delta is a number of its site's value, and sigma that or its square root."""
    for (name, parameter), site in links.items():
        value = _parameter(perturbed[name], parameter)
        expected = read_parameter(parameter, perturbed[site], values[site])
        if not is_close(value, expected.reshape(-1)[weights[name, parameter]].expand_as(value)):
            form = "the value" if expected is values[site] else "the square root of the value"
            raise ModelError(
                f"{describe(perturbed[name])}: {parameter} depends on site {site!r} but is not "
                f"{form} of it, so it has no closed-form update; {CURES[parameter]}; or use "
                "adaptation=None"
            )


def _find_sigma(
    before: Site,
    spaced: Site,
    after: Site,
    sigmas: _Sigmas,
    learned: Collection[str],
) -> tuple[str, int | Tensor]:
    """
    Return the site whose sigma multiplies the scale of an observed Normal or StudentT, and the
    index of the number for its data.
    """
    old, new = unwrap(before["fn"]), unwrap(after["fn"])
    is_likelihood = before["is_observed"] and type(old) in LIKELIHOODS
    if sigmas.sites and is_likelihood and type(old) is type(new):
        others = [n for n in old.arg_constraints if n != "scale"]
        if all(is_close(getattr(old, n), getattr(new, n)) for n in others):
            index = _index(unwrap(spaced["fn"]).scale / old.scale, sigmas.spaced)
            names = {sigmas.sites[k] for k in torch.as_tensor(index).unique().tolist()}
            if len(names) == 1 and is_close(new.scale, old.scale * sigmas.after[index]):
                (name,) = names
                return name, index - sigmas.sites.index(name)
    kind = "observed" if before["is_observed"] else "latent"
    raise ModelError(
        f"{kind} site {before['name']!r} ~ {type(old).__name__} depends on one of {learned}, "
        "which are learned for the sparse prior, in a way that has no closed-form update: only an "
        "observed Normal or StudentT may, with scale = c * sigma, that is c * sigma2.sqrt() under "
        "an InverseGamma prior; give it a site of its own, or use adaptation=None"
        + ("" if before["is_observed"] else "; if it is data, pass obs=")
    )


def _parameter(site: Site, parameter: str) -> Tensor:
    return torch.as_tensor(getattr(unwrap(site["fn"]), parameter))


def is_sparse(site: Site) -> bool:
    """Whether a site has a spike-and-slab prior."""
    return isinstance(unwrap(site["fn"]), SpikeAndSlab)


def describe(site: Site) -> str:
    """Return a site's prior and name, for error messages."""
    return f"{type(unwrap(site['fn'])).__name__} site {site['name']!r}"
