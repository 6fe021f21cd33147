# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Questions to the sites of a trace, and refusals of those that cannot be sampled."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import has_weights
from pyro_aeb.priors import Group

Site = dict[str, Any]

_WRAPPERS = (pyro.distributions.Independent, pyro.distributions.MaskedDistribution, Group)


def unwrap(fn: Any) -> Any:
    """
    Return the distribution inside ``to_event`` and ``mask``, and that of the single weights of a
    Group.
    """
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def remove_mask(fn: Any) -> Any:
    """
    Return a distribution without the masks that ``mask`` gave it: a minibatch may be masked as a
    whole, and others not.
    """
    if isinstance(fn, pyro.distributions.MaskedDistribution):
        return remove_mask(fn.base_dist)
    if isinstance(fn, pyro.distributions.Independent):
        base = remove_mask(fn.base_dist)
        return fn if base is fn.base_dist else base.to_event(fn.reinterpreted_batch_ndims)
    return fn


def is_masked(site: Site) -> bool:
    """Whether a site is under ``poutine.mask``, or its distribution has a mask."""
    fn = site["fn"]
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, pyro.distributions.MaskedDistribution):
            return True
        fn = fn.base_dist
    return site["mask"] is not None


def is_plain(site: Site) -> bool:
    """Whether a site's log density counts as it is: once, and unmasked."""
    scale = site["scale"]
    return not is_masked(site) and not has_weights(scale) and bool(scale == 1.0)


class EnumeratedSite(ModelError):
    """Raised at a discrete site whose values can be listed, so it can be summed out."""


def check_distribution(site: Site) -> None:
    """
    :raises ModelError: if the site's distribution tells neither shape nor support.
    """
    if not (hasattr(site["fn"], "batch_shape") and hasattr(site["fn"], "support")):
        raise ModelError(
            f"site {site['name']!r} ~ {type(site['fn']).__name__} has no batch_shape or no "
            "support, expected a pyro.distributions.TorchDistribution; make the class one, or give "
            "the log density by pyro.factor"
        )


def as_numbers(fn: Any, value: Any) -> Any:
    """
    Return whole numbers and booleans as floating-point numbers, where a density takes no others:
    the labels of a Bernoulli. All other values are returned as they are.

    :param fn: the distribution that has the density.
    """
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return value
    parameters = [p for p in vars(unwrap(fn)).values() if isinstance(p, Tensor)]
    kinds = [p.dtype for p in parameters if p.is_floating_point()]
    numbers = value.to(kinds[0] if kinds else torch.get_default_dtype())
    for candidate in (value, numbers):
        try:
            fn.log_prob(candidate)
            return candidate
        except Exception:  # of whatever kind: the density decides
            continue
    return value


def log_density(site: Site, value: Any = None) -> Tensor:
    """
    Return the log density of a value, elementwise, masks aside.

    :param value: by default the site's own.
    """
    value = site["value"] if value is None else value
    density: Tensor = remove_mask(site["fn"]).log_prob(value, *site["args"], **site["kwargs"])
    return density


def check_continuous(site: Site) -> None:
    """
    :raises EnumeratedSite: if the site is to be summed out.
    :raises ModelError: if it has a discrete support.
    """
    check_distribution(site)
    fn = site["fn"]
    if fn.support.is_discrete:
        can_be_listed = getattr(fn, "has_enumerate_support", False)
        cure = 'infer={"enumerate": "parallel"} in its pyro.sample, or ' if can_be_listed else ""
        raise (EnumeratedSite if is_enumerable(site) else ModelError)(
            f"site {site['name']!r} ~ {type(fn).__name__} is a discrete latent variable, "
            f"which has no gradient; sum it out in the model ({cure}e.g. with "
            "dist.MixtureSameFamily) or observe it with obs="
        )


def is_enumerable(site: Site) -> bool:
    """Whether Pyro can list all values of a latent site side by side, as for NUTS."""
    can_be_listed = getattr(site["fn"], "has_enumerate_support", False)
    return can_be_listed and site["infer"].get("enumerate", "parallel") == "parallel"
