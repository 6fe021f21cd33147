# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latent sites that updates of their own learn: which they are, and whether a closed form holds
for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import StickBreakingTransform

from pyro_aeb.errors import ModelError
from pyro_aeb.latents.closed_form import InForm
from pyro_aeb.latents.contract import (
    LatentUpdate,
    Seen,
)
from pyro_aeb.model.perturbation import moved_values
from pyro_aeb.model.structure import LearnedSite
from pyro_aeb.model.tracing import Site, base, check_continuous


def learned_sites(
    latent: Mapping[str, Site], updates: Mapping[str, LatentUpdate], taken: Collection[str]
) -> tuple[LearnedSite, ...]:
    """
    The sites that are learned by updates, in the order of the model.

    :param latent: the latent sites of a look.
    :param updates: by site.
    :param taken: SSGL sites and the latents of their prior.
    :raises ModelError: if an update is for no such site, or not for a site of its kind.
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
    return tuple(_learned(latent[name], updates[name]) for name in latent if name in updates)


def _learned(site: Site, update: LatentUpdate) -> LearnedSite:
    check_continuous(site)
    name = site["name"]
    if site["mask"] is not None or site["scale"] != 1.0:
        raise ModelError(
            f"latent {name!r} is under poutine.scale or poutine.mask, expected its prior as it is; "
            "put the handler around the observed sites only"
        )
    try:
        own = update.of(base(site["fn"]))
    except ValueError as error:
        raise ModelError(f"latent {name!r} {error}") from error
    return LearnedSite(name, site["value"].shape, biject_to(site["fn"].support), own)


FORM_TOLERANCE = 1e-2
"""
How far the gradient at other values may be off, as a part of its size: far above single precision,
far below what another form makes.
"""


def check_forms(
    sites: Mapping[str, Site],
    learned: Collection[LearnedSite],
    look_at: Callable[..., dict[str, Site]],
) -> None:
    """
    Checks that the log joint density has the form that a closed form is for, by its gradient at
    other values of the latent.

    :param sites: all sites of a look at feasible values.
    :param learned: the sites that updates learn.
    :param look_at: looks at the model with other values.
    :raises ModelError: if it has another form.
    """
    values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
    values = moved_values(sites, values, values.keys())
    for site in learned:
        if not isinstance(site.update, InForm):
            continue
        form = site.update.form
        here = _seen_at(values, site, look_at)
        first, second = here.derivatives()
        numbers = form.numbers(here.value, first, second)
        for value in _beside(sites, values, site):
            there = _seen_at({**values, site.name: value}, site, look_at)
            expected, (found, _) = form.gradient(there.value, *numbers), there.derivatives()
            size = torch.stack([slope.abs().max() for slope in (expected, found, first)]).max()
            if not bool((found - expected).abs().max() <= FORM_TOLERANCE * size):
                raise ModelError(
                    f"latent {site.name!r} ~ {type(base(sites[site.name]['fn'])).__name__}: its "
                    "prior is not conjugate to what depends on it, so there is no closed form; use "
                    "latents.GradientStep(...) or a function of your own"
                )


def _beside(
    sites: Mapping[str, Site], values: Mapping[str, Tensor], site: LearnedSite
) -> tuple[Tensor, Tensor]:
    """
    A value on either side, on one twice as far: where the density of a mixture all but has a form
    between two values, it has not between three.
    """
    moved = moved_values(sites, values, [site.name])[site.name]
    here, there = (site.transform.inv(value) for value in (values[site.name], moved))
    return moved, site.transform(3.0 * here - 2.0 * there)


def _seen_at(
    values: Mapping[str, Tensor], site: LearnedSite, look_at: Callable[..., dict[str, Site]]
) -> Seen:
    leaf = values[site.name].detach().clone().requires_grad_()
    with torch.enable_grad():
        total = sum(
            scale_and_mask(
                s["fn"].log_prob(s["value"], *s["args"], **s["kwargs"]), s["scale"], s["mask"]
            ).sum()
            for s in look_at({**values, site.name: leaf}, grad=True).values()
        )
        slopes = derivatives(torch.as_tensor(total), leaf, site)
    return Seen(leaf.detach(), {}, {}, *slopes)


def derivatives(total: Tensor, leaf: Tensor, site: LearnedSite) -> tuple[Tensor, Tensor | None]:
    """
    The gradient and the curvature of :class:`~pyro_aeb.latents.contract.Seen`, as many as the
    site's update reads. The graph stays.

    :param Tensor total: a sum of log densities.
    :param Tensor leaf: the site's value, of which it is a function.
    """
    twice = site.update.derivatives > 1
    first = _gradient(total, leaf, create_graph=twice)
    if not twice:
        return first, None
    simplex = isinstance(site.transform, StickBreakingTransform)
    second = _gradient(first[..., 0] if simplex else first, leaf, create_graph=False)
    return first.detach(), second


def _gradient(total: Tensor, leaf: Tensor, create_graph: bool) -> Tensor:
    found = None
    if total.requires_grad:
        (found,) = torch.autograd.grad(
            total.sum(), leaf, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(leaf) if found is None else found
