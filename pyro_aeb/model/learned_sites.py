# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latent sites learned by updates given as ``latents=``: find them, check that a closed form
holds for them, and differentiate the log joint density with respect to them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import StickBreakingTransform

from pyro_aeb.errors import ModelError
from pyro_aeb.latents.closed_form import ConjugateUpdate
from pyro_aeb.latents.contract import LatentUpdate, Seen
from pyro_aeb.model.perturbation import perturb
from pyro_aeb.model.sites import Site, check_continuous, is_plain, unwrap
from pyro_aeb.model.structure import LearnedSite
from pyro_aeb.model.tracing import Tracer


def find_learned_sites(
    latent: Mapping[str, Site], updates: Mapping[str, LatentUpdate], taken: Collection[str]
) -> tuple[LearnedSite, ...]:
    """
    Return the sites that are learned by updates, in the order of the model.

    :param taken: spike-and-slab sites and the latents of their prior.
    :raises ModelError: if an update names another site, or does not fit its site.
    """
    for name in updates:
        if name not in latent:
            raise ModelError(
                f"latents names {name!r}, which is no latent site of the model; latent sites are "
                f"{sorted(latent)}"
            )
        if name in taken:
            raise ModelError(
                f"latents names {name!r}, which is an SSGL site or a latent of its prior, learned "
                "by equations (4) to (7) already; leave it out"
            )
    return tuple(_learned_site(latent[name], updates[name]) for name in latent if name in updates)


def _learned_site(site: Site, update: LatentUpdate) -> LearnedSite:
    check_continuous(site)
    name = site["name"]
    if not is_plain(site):
        raise ModelError(
            f"latent {name!r} is under poutine.scale or poutine.mask, or has a mask, expected its "
            "prior as it is; put the handler around the observed sites only"
        )
    try:
        site_update = update.of(unwrap(site["fn"]))
    except ValueError as error:
        raise ModelError(f"latent {name!r} {error}") from error
    return LearnedSite(name, site["value"].shape, biject_to(site["fn"].support), site_update)


FORM_TOLERANCE = 1e-2
"""
The largest relative error of the gradient that a form predicts: far above single precision, far
below the errors of a wrong form.
"""


def check_forms(sites: Mapping[str, Site], learned: Collection[LearnedSite], trace: Tracer) -> None:
    """
    Check that the log joint density has the form that a closed-form update assumes, by its gradient
    at other values of the latent.

    :param sites: all sites of a trace at feasible values.
    :raises ModelError: if it has another form.
    """
    values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    values = perturb(sites, values, values.keys())
    for site in learned:
        if not isinstance(site.update, ConjugateUpdate):
            continue
        form = site.update.form
        center = _differentiate_at(values, site, trace)
        first, second = center.derivatives()
        numbers = form.numbers(center.value, first, second)
        for value in _nearby_values(sites, values, site):
            nearby = _differentiate_at({**values, site.name: value}, site, trace)
            expected, (gradient, _) = form.gradient(nearby.value, *numbers), nearby.derivatives()
            size = torch.stack([slope.abs().max() for slope in (expected, gradient, first)]).max()
            if not bool((gradient - expected).abs().max() <= FORM_TOLERANCE * size):
                raise ModelError(
                    f"latent {site.name!r} ~ {type(unwrap(sites[site.name]['fn'])).__name__}: its "
                    "prior is not conjugate to what depends on it, so there is no closed form; use "
                    "latents.GradientStep(...) or a function of your own"
                )


def _nearby_values(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], site: LearnedSite
) -> tuple[Tensor, Tensor]:
    """
    Return a value on either side of a site's own, the second twice as far: the density of a mixture
    can nearly fit a form at two values, but not at three.
    """
    nearby = perturb(sites, values, [site.name])[site.name]
    free, free_nearby = (site.transform.inv(value) for value in (values[site.name], nearby))
    return nearby, site.transform(3.0 * free - 2.0 * free_nearby)


def _differentiate_at(values: Mapping[str, Tensor], site: LearnedSite, trace: Tracer) -> Seen:
    leaf = values[site.name].detach().clone().requires_grad_()
    with torch.enable_grad():
        total = sum(
            scale_and_mask(
                s["fn"].log_prob(s["value"], *s["args"], **s["kwargs"]), s["scale"], s["mask"]
            ).sum()
            for s in trace({**values, site.name: leaf}, grad=True).values()
        )
        slopes = differentiate(torch.as_tensor(total), leaf, site)
    return Seen(leaf.detach(), {}, {}, *slopes)


def differentiate(total: Tensor, leaf: Tensor, site: LearnedSite) -> tuple[Tensor, Tensor | None]:
    """
    Return the gradient and the curvature of :class:`~pyro_aeb.latents.contract.Seen`; the latter is
    None unless the site's update asks for it. The graph is kept.

    :param Tensor total: a sum of log densities.
    :param Tensor leaf: the site's value, of which ``total`` is a function.
    """
    twice = site.update.derivatives > 1
    first = _gradient(total, leaf, create_graph=twice)
    if not twice:
        return first, None
    simplex = isinstance(site.transform, StickBreakingTransform)
    second = _gradient(first[..., 0] if simplex else first, leaf, create_graph=False)
    return first.detach(), second


def _gradient(total: Tensor, leaf: Tensor, create_graph: bool) -> Tensor:
    gradient = None
    if total.requires_grad:
        (gradient,) = torch.autograd.grad(
            total.sum(), leaf, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(leaf) if gradient is None else gradient
