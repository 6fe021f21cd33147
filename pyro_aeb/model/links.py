# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Which latent site a parameter of a spike-and-slab prior comes from, and whether (6) and (7) hold for
it.

Provenance proposes: a sparse site's ``delta`` is linked to the Beta site it was computed from, its
``sigma`` to the InverseGamma site. Two looks at the model, with values moved, then decide:
``delta`` must be the Beta site's value, ``sigma`` the square root of the InverseGamma site's, the
scale of an observed Normal site a multiple of a sigma or untouched, and nothing else may depend on
them. A link that provenance lost (``float(x)``, ``x.item()``) and a form without a closed-form
update are errors, never a silent wrong answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops.provenance import get_provenance
from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.model.perturbation import Looker, moved_values, same, same_density
from pyro_aeb.model.tracing import Site, base
from pyro_aeb.priors import SpikeAndSlab

HandLinks = Mapping[str, Mapping[str, str]]
"""Sparse site to ``{"delta": Beta site, "sigma": InverseGamma site}``, either or both."""

PRIORS = {"delta": dist.Beta, "sigma": dist.InverseGamma}
CURES = {
    "delta": "delta may be a number or the value of a pyro.sample site with a Beta prior",
    "sigma": "sigma may be a number or the square root of the value of a pyro.sample site with an "
    "InverseGamma prior, sigma2.sqrt()",
}


def find_links(
    latent: Mapping[str, Site], tracked: Mapping[str, Site], sparse: list[str], by_hand: HandLinks
) -> dict[tuple[str, str], str]:
    """
    The latent site of every spike-and-slab parameter that has one, by provenance or by hand.

    :param latent: the latent sites of a look.
    :param tracked: the same sites of a look for provenance; empty where there could be none.
    :param sparse: names of the sparse sites.
    :param by_hand: links that go before provenance.
    :returns: (sparse site, ``"delta"`` or ``"sigma"``) to latent site.
    :raises ModelError: if a link is ambiguous or leads to a prior without a closed-form update.
    """
    _check_hand_links(latent, sparse, by_hand)
    links = {}
    for name in sparse:
        where = named(latent[name])
        fn = base(latent[name]["fn"])
        provenance: dict[str, frozenset] = dict.fromkeys(fn.given, frozenset())
        if name in tracked:
            provenance = base(tracked[name]["fn"]).parameter_provenance
        for parameter in fn.shape_parameters:
            if found := provenance[parameter] & latent.keys():
                raise ModelError(
                    f"{where}: {parameter} depends on the latent site(s) "
                    f"{sorted(found)}, expected a number or a fixed tensor: {parameter} is not "
                    "learned; choose it by cross-validation"
                )
        for parameter in PRIORS:
            found = provenance[parameter] & latent.keys()
            if parameter in by_hand.get(name, {}):
                found = frozenset({by_hand[name][parameter]})
            if len(found) > 1:
                raise ModelError(
                    f"{where}: {parameter} depends on the latent sites "
                    f"{sorted(found)}, expected one; {CURES[parameter]}; or say which with "
                    f"links={{{name!r}: {{{parameter!r}: ...}}}}"
                )
            for site in found:
                _check_prior(where, parameter, latent[site], tracked.get(site), latent.keys())
                links[name, parameter] = site
    return links


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
                raise ModelError(f"links: {parameter!r} of site {name!r} is not 'delta' or 'sigma'")
            if site not in latent:
                raise ModelError(
                    f"links: {parameter!r} of site {name!r} names {site!r}, which is no latent "
                    f"site; latent sites are {sorted(latent)}"
                )


def _check_prior(
    of: str, parameter: str, site: Site, tracked: Site | None, latent: Collection[str]
) -> None:
    """Checks that a linked site has the conjugate prior, with fixed parameters, and is scalar."""
    fn = base(site["fn"])
    where = f"{of}: {parameter} comes from site {site['name']!r}"
    if not isinstance(fn, PRIORS[parameter]):
        raise ModelError(
            f"{where} ~ {type(fn).__name__}, which has no closed-form update; {CURES[parameter]}; "
            "or use adaptation=None, which samples it"
        )
    if tracked is not None and (found := _prior_provenance(base(tracked["fn"])) & set(latent)):
        raise ModelError(_hyperprior(of, parameter, site["name"], str(sorted(found))))
    if site["value"].numel() != 1:
        raise ModelError(
            f"{where}, which has shape {tuple(site['value'].shape)}, expected a single number; "
            "give every sparse site a site of its own instead"
        )


def _hyperprior(of: str, parameter: str, site: str, found: str) -> str:
    return (
        f"{of}: {parameter} comes from site {site!r}, whose own prior depends on "
        f"{found}, expected fixed numbers: the closed-form update knows one level; use "
        "adaptation=None, which samples all"
    )


def _prior_provenance(fn: Any) -> frozenset[str]:
    if isinstance(fn, dist.Beta):
        return get_provenance([fn.concentration1, fn.concentration0])
    return get_provenance([fn.concentration, fn.rate])


def check_links(
    sites: Mapping[str, Site],
    sparse: Collection[str],
    links: Mapping[tuple[str, str], str],
    look_at: Looker,
) -> dict[str, frozenset[str]]:
    """
    Checks the links by moving values, and finds the likelihoods whose scale is a multiple of sigma.

    :param sites: all sites of a look at feasible values.
    :param sparse: names of the sparse sites.
    :param links: from :func:`find_links`.
    :param look_at: looks at the model with other values.
    :returns: InverseGamma site to the names of those observed sites.
    :raises ModelError: if something depends on the linked sites that should not.
    """
    learned = set(links.values())
    feasible = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    values = moved_values(sites, feasible, feasible.keys() - learned)
    before = look_at(values)
    _check_not_lost(sites, before, sparse, links)
    values = moved_values(sites, values, learned)
    after = look_at(values)
    _check_form(after, links, values)
    sigmas = {
        site: values[site].sqrt() / feasible[site].sqrt()
        for (_, parameter), site in links.items()
        if parameter == "sigma"
    }
    likelihoods: dict[str, set[str]] = {site: set() for site in sigmas}
    for name in before.keys() - learned - set(sparse):
        if not same_density(before[name], after[name]):
            likelihoods[_scaled_by(before[name], after[name], sigmas, sorted(learned))].add(name)
    return {site: frozenset(names) for site, names in likelihoods.items()}


def _check_not_lost(
    sites: Mapping[str, Site],
    moved: Mapping[str, Site],
    sparse: Collection[str],
    links: Mapping[tuple[str, str], str],
) -> None:
    """Checks that nothing learned, and no unlinked sparse parameter, follows the other sites."""
    for (name, parameter), site in links.items():
        if not same_density(sites[site], moved[site]):
            raise ModelError(
                _hyperprior(named(sites[name]), parameter, site, "another latent site")
            )
    for name in sparse:
        where = named(sites[name])
        for parameter in base(sites[name]["fn"]).given:
            if (name, parameter) in links:
                continue
            if same(_parameter(sites[name], parameter), _parameter(moved[name], parameter)):
                continue
            if parameter not in PRIORS:
                raise ModelError(
                    f"{where}: {parameter} changes with the latent sites, expected a "
                    "number or a fixed tensor"
                )
            candidates = [n for n, s in sites.items() if isinstance(s["fn"], PRIORS[parameter])]
            hint = repr(candidates[0]) if len(candidates) == 1 else "..."
            raise ModelError(
                f"{where}: {parameter} changes with a latent site, but which one is "
                "lost: float(x) and x.item() lose it, and so does a model that cannot run on "
                "tensors with provenance; pass the tensor itself, or say which with "
                f"links={{{name!r}: {{{parameter!r}: {hint}}}}}"
            )


def _check_form(
    moved: Mapping[str, Site],
    links: Mapping[tuple[str, str], str],
    values: Mapping[str, Tensor],
) -> None:
    """Checks that delta is its site's value and sigma the square root of its site's value."""
    for (name, parameter), site in links.items():
        found = _parameter(moved[name], parameter)
        expected = values[site] if parameter == "delta" else values[site].sqrt()
        if not same(found, expected.reshape(()).expand_as(found)):
            what = "the value" if parameter == "delta" else "the square root of the value"
            raise ModelError(
                f"{named(moved[name])}: {parameter} depends on site {site!r} but is not {what} of "
                f"it, so it has no closed-form update; {CURES[parameter]}; or use adaptation=None"
            )


def _scaled_by(
    before: Site, after: Site, sigmas: Mapping[str, Tensor], learned: Collection[str]
) -> str:
    """The InverseGamma site whose square root the scale of an observed Normal site follows."""
    old, new = base(before["fn"]), base(after["fn"])
    if before["is_observed"] and type(old) is type(new) is dist.Normal:
        for name, factor in sigmas.items():
            if same(old.loc, new.loc) and same(new.scale, old.scale * factor):
                return name
    kind = "observed" if before["is_observed"] else "latent"
    raise ModelError(
        f"{kind} site {before['name']!r} ~ {type(old).__name__} depends on one of {learned}, "
        "which are learned for the sparse prior, in a way that has no closed-form update: only an "
        "observed Normal may, with scale = c * sigma2.sqrt(); give it a site of its own, or use "
        "adaptation=None" + ("" if before["is_observed"] else "; if it is data, pass obs=")
    )


def _parameter(site: Site, parameter: str) -> Tensor:
    return torch.as_tensor(getattr(base(site["fn"]), parameter))


def is_sparse(site: Site) -> bool:
    """Whether a site has a spike-and-slab prior."""
    return isinstance(base(site["fn"]), SpikeAndSlab)


def named(site: Site) -> str:
    """A site by its prior and its name."""
    return f"{type(base(site['fn'])).__name__} site {site['name']!r}"
