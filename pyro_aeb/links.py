# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Which latent site an SSGL parameter comes from, and whether (6) and (7) hold for it.

Provenance proposes: an SSGL site's ``delta`` is linked to the Beta site it was computed from, its
``sigma`` to the InverseGamma site. Two more looks at the model, with values moved, then decide:
``delta`` must be the Beta site's value, ``sigma`` the square root of the InverseGamma site's, the
scale of an observed Normal site a multiple of a sigma or untouched, and nothing else may depend on
them. A link that provenance lost (``float(x)``, ``x.item()``) and a form without a closed-form
update are errors, never a silent wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.distributions import SSGL
from pyro_aeb.errors import ModelError
from pyro_aeb.look import Site

Looker = Callable[[Mapping[str, Tensor]], dict[str, Site]]
"""Latent values by name, in constrained space, to the sites of a look with those values."""

HandLinks = Mapping[str, Mapping[str, str]]
"""SSGL site to ``{"delta": Beta site, "sigma": InverseGamma site}``, either or both."""

PRIORS = {"delta": dist.Beta, "sigma": dist.InverseGamma}
CURES = {
    "delta": "delta may be a number or the value of a pyro.sample site with a Beta prior",
    "sigma": "sigma may be a number or the square root of the value of a pyro.sample site with an "
    "InverseGamma prior, sigma2.sqrt()",
}


def base(fn: Any) -> Any:
    """The distribution inside ``to_event``."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn


def find_links(
    latent: Mapping[str, Site], sparse: list[str], by_hand: HandLinks
) -> dict[tuple[str, str], str]:
    """
    The latent site of every SSGL parameter that has one, by provenance or by hand.

    :param latent: the latent sites of a look.
    :param sparse: names of the SSGL sites.
    :param by_hand: links that go before provenance.
    :returns: (SSGL site, ``"delta"`` or ``"sigma"``) to latent site.
    :raises ModelError: if a link is ambiguous or leads to a prior without a closed-form update.
    """
    _check_hand_links(latent, sparse, by_hand)
    links = {}
    for name in sparse:
        provenance = base(latent[name]["fn"]).parameter_provenance
        for parameter in ("v0", "v1"):
            if found := provenance[parameter] & latent.keys():
                raise ModelError(
                    f"SSGL site {name!r}: {parameter} depends on the latent site(s) "
                    f"{sorted(found)}, expected a number or a fixed tensor: {parameter} is not "
                    "learned; choose it by cross-validation"
                )
        for parameter in PRIORS:
            found = provenance[parameter] & latent.keys()
            if parameter in by_hand.get(name, {}):
                found = {by_hand[name][parameter]}
            if len(found) > 1:
                raise ModelError(
                    f"SSGL site {name!r}: {parameter} depends on the latent sites "
                    f"{sorted(found)}, expected one; {CURES[parameter]}; or say which with "
                    f"links={{{name!r}: {{{parameter!r}: ...}}}}"
                )
            for site in found:
                _check_prior(name, parameter, latent[site], latent.keys())
                links[name, parameter] = site
    return links


def _check_hand_links(latent: Mapping[str, Site], sparse: list[str], by_hand: HandLinks) -> None:
    for name, parameters in by_hand.items():
        if name not in sparse:
            raise ModelError(f"links: {name!r} is not an SSGL site; SSGL sites are {sparse}")
        for parameter, site in parameters.items():
            if parameter not in PRIORS:
                raise ModelError(f"links: {parameter!r} of site {name!r} is not 'delta' or 'sigma'")
            if site not in latent:
                raise ModelError(
                    f"links: {parameter!r} of site {name!r} names {site!r}, which is no latent "
                    f"site; latent sites are {sorted(latent)}"
                )


def _check_prior(name: str, parameter: str, site: Site, latent: Any) -> None:
    """Checks that a linked site has the conjugate prior, with fixed parameters, and is scalar."""
    fn = base(site["fn"])
    where = f"SSGL site {name!r}: {parameter} comes from site {site['name']!r}"
    if not isinstance(fn, PRIORS[parameter]):
        raise ModelError(
            f"{where} ~ {type(fn).__name__}, which has no closed-form update; {CURES[parameter]}; "
            "or use adaptation=None, which samples it"
        )
    if found := _prior_provenance(fn) & latent:
        raise ModelError(
            f"{where}, whose own prior depends on {sorted(found)}, expected fixed numbers: the "
            "closed-form update knows one level; or use adaptation=None, which samples all"
        )
    if site["value"].numel() != 1:
        raise ModelError(
            f"{where}, which has shape {tuple(site['value'].shape)}, expected a single number; "
            "give every SSGL site a site of its own instead"
        )


def _prior_provenance(fn: Any) -> frozenset[str]:
    if isinstance(fn, dist.Beta):
        return get_provenance([fn.concentration1, fn.concentration0])
    return get_provenance([fn.concentration, fn.rate])


def check_links(
    sites: Mapping[str, Site],
    sparse: list[str],
    links: Mapping[tuple[str, str], str],
    look_at: Looker,
) -> dict[str, frozenset[str]]:
    """
    Checks the links by moving values, and finds the likelihoods whose scale is a multiple of sigma.

    :param sites: all sites of a look.
    :param sparse: names of the SSGL sites.
    :param links: from :func:`find_links`.
    :param look_at: looks at the model with other values.
    :returns: InverseGamma site to the names of those observed sites.
    :raises ModelError: if something depends on the linked sites that should not.
    """
    values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    learned = sorted(set(links.values()))
    _check_not_lost(
        sites, sparse, links, look_at(_moved(sites, values, set(values) - set(learned)))
    )
    values |= _moved(sites, values, set(learned))
    moved = look_at(values)
    for (name, parameter), site in links.items():
        found = _parameter(moved[name], parameter)
        expected = values[site] if parameter == "delta" else values[site].sqrt()
        if not _same(found, expected.reshape(()).expand_as(found)):
            what = "the value" if parameter == "delta" else "the square root of the value"
            raise ModelError(
                f"SSGL site {name!r}: {parameter} depends on site {site!r} but is not {what} of "
                f"it, so it has no closed-form update; {CURES[parameter]}; or use adaptation=None"
            )
    scales = {site: values[site].sqrt() for (_, p), site in links.items() if p == "sigma"}
    before = {site: sites[site]["value"].sqrt() for site in scales}
    likelihoods: dict[str, set[str]] = {site: set() for site in scales}
    for name in sites.keys() - set(learned) - set(sparse):
        if not _same_density(sites[name], moved[name]):
            likelihoods[_scaled_by(sites[name], moved[name], before, scales, learned)].add(name)
    return {site: frozenset(names) for site, names in likelihoods.items()}


def _moved(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], which: set[str]
) -> dict[str, Tensor]:
    """Moves each of these sites by its own amount in unconstrained space."""
    moved = dict(values)
    for index, name in enumerate(sorted(which)):
        transform = biject_to(sites[name]["fn"].support)
        shift = 0.3 + 0.2 * (index + 1) / len(which)
        moved[name] = transform(transform.inv(values[name]) + shift)
    return moved


def _check_not_lost(
    sites: Mapping[str, Site],
    sparse: list[str],
    links: Mapping[tuple[str, str], str],
    moved: Mapping[str, Site],
) -> None:
    """Checks that no SSGL parameter follows a site it is not linked to."""
    for name in sparse:
        for parameter in ("v0", "v1", "delta", "sigma"):
            if (name, parameter) in links:
                continue
            if _same(_parameter(sites[name], parameter), _parameter(moved[name], parameter)):
                continue
            if parameter not in PRIORS:
                raise ModelError(
                    f"SSGL site {name!r}: {parameter} changes with the latent sites, expected a "
                    "number or a fixed tensor"
                )
            candidates = [n for n, s in sites.items() if isinstance(s["fn"], PRIORS[parameter])]
            hint = repr(candidates[0]) if len(candidates) == 1 else "..."
            raise ModelError(
                f"SSGL site {name!r}: {parameter} changes with a latent site, but which one is "
                "lost, as float(x) and x.item() do; pass the tensor itself, or say which with "
                f"links={{{name!r}: {{{parameter!r}: {hint}}}}}"
            )


def _scaled_by(
    site: Site,
    moved: Site,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    learned: list[str],
) -> str:
    """The InverseGamma site whose square root the scale of an observed Normal site follows."""
    old, new = base(site["fn"]), base(moved["fn"])
    if site["is_observed"] and isinstance(old, dist.Normal):
        loc = [detach_provenance(fn.loc) for fn in (old, new)]
        scale = [detach_provenance(fn.scale) for fn in (old, new)]
        for name in after:
            if _same(*loc) and _same(scale[1], scale[0] * (after[name] / before[name])):
                return name
    kind = "observed" if site["is_observed"] else "latent"
    raise ModelError(
        f"{kind} site {site['name']!r} ~ {type(old).__name__} depends on one of {learned}, "
        "which are learned for the SSGL prior, in a way that has no closed-form update: only an "
        "observed Normal may, with scale = c * sigma2.sqrt(); give it a site of its own, or use "
        "adaptation=None"
    )


def _parameter(site: Site, parameter: str) -> Tensor:
    return torch.as_tensor(detach_provenance(getattr(base(site["fn"]), parameter)))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=0.0, equal_nan=True)


def _same_density(a: Site, b: Site) -> bool:
    densities = [detach_provenance(site["fn"].log_prob(a["value"])) for site in (a, b)]
    return _same(*densities)


def is_sparse(site: Site) -> bool:
    """Whether a site has an SSGL prior."""
    return isinstance(base(site["fn"]), SSGL)
