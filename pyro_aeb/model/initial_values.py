# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Initial values of latent sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible, init_to_uniform
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError
from pyro_aeb.model.side_effects import preserve_buffers
from pyro_aeb.model.sites import Site, check_continuous, unwrap
from pyro_aeb.priors import SpikeAndSlab


def _init_improper(site: Site, radius: float) -> Tensor:
    """
    Return a value of a distribution that has no samples, in its support.

    :param float radius: the largest number in unconstrained space.
    """
    transform = biject_to(site["fn"].support)
    free = torch.empty(transform.inverse_shape(site["fn"].shape())).uniform_(-radius, radius)
    value: Tensor = transform(free)
    return value


def init_to_zero(site: Site) -> Tensor:
    """
    Return a feasible value of a continuous site, zero in unconstrained space.

    :raises EnumeratedSite: if the site is discrete and can be summed out.
    :raises ModelError: if it cannot be sampled.
    """
    check_continuous(site)
    if "init_value" in site["infer"]:
        return site["infer"]["init_value"].detach().clone()
    if isinstance(site["fn"], pyro.distributions.ImproperUniform):
        return _init_improper(site, 0.0)
    if isinstance(unwrap(site["fn"]), SpikeAndSlab):  # Pyro's would draw a sample for its shape
        return torch.zeros_like(site["fn"].mean)
    try:
        biject_to(site["fn"].support)
        return init_to_feasible(site)
    except NotImplementedError as error:
        raise ModelError(
            f"site {site['name']!r} ~ {type(site['fn']).__name__} has a support that no map from "
            f"unconstrained space is known for ({error}); write it with another distribution"
        ) from error


def init_to_default(site: Site | None = None) -> Any:
    """
    Initialize a site as :class:`~pyro_aeb.AEBKernel` does by default.

    Sites sampled with ``infer={"init_value": tensor}`` start at that value; other spike-and-slab
    weights at a draw from Normal(0, 0.1^2); sites with an InverseGamma or Beta prior at the middle
    of their unconstrained space (1 and 1/2); all others as by Pyro's
    :func:`~pyro.infer.autoguide.initialization.init_to_uniform`.
    """
    if site is None:
        return init_to_default
    if "init_value" in site["infer"]:
        return site["infer"]["init_value"].detach().clone()
    fn = unwrap(site["fn"])
    if isinstance(fn, SpikeAndSlab):
        return 0.1 * torch.randn_like(site["fn"].mean)
    if isinstance(fn, (pyro.distributions.InverseGamma, pyro.distributions.Beta)):
        return init_to_feasible(site)
    return init_to_uniform(site)


def init_in_spikes(site: Site) -> Any:
    """
    Initialize a site as :func:`init_to_default`, with spike-and-slab weights that have no
    ``init_value`` as narrow as their spikes, if these are narrower than 0.1.
    """
    value, fn = init_to_default(site), unwrap(site["fn"])
    if "init_value" in site["infer"] or not isinstance(fn, SpikeAndSlab):
        return value
    spread = [torch.as_tensor(part.variance).detach().to(value) for part in fn.parts]
    width = fn.sigma.detach() * torch.minimum(*spread).sqrt()
    return value * (10.0 * width).clamp(max=1.0)


def draw_value(site: Site, strategy: Callable[..., Any]) -> Any:
    """Return a strategy's value of a site, or one in the support where the site has no samples."""
    try:
        return strategy(site)
    except NotImplementedError:
        if not isinstance(site["fn"], pyro.distributions.ImproperUniform):
            raise
        return _init_improper(site, 2.0)


def first_value(site: Site, strategy: Callable[..., Any] = init_to_default) -> Any:
    """Return a sample of a discrete site, and a strategy's value of a continuous one."""
    return site["fn"].sample() if site["fn"].support.is_discrete else draw_value(site, strategy)


def draw_initial_values(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    strategy: Callable[..., Any],
) -> dict[str, Tensor]:
    """
    Return initial values of the latent sites, in constrained space.

    :param strategy: a function of a site, such as those of
        :mod:`pyro.infer.autoguide.initialization`.
    """

    with preserve_buffers(), torch.no_grad(), InitMessenger(partial(draw_value, strategy=strategy)):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    latent = {n: s for n, s in trace.iter_stochastic_nodes()}
    return {name: torch.as_tensor(site["value"]).clone() for name, site in latent.items()}
