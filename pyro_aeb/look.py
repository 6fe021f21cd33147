# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A look at a model: one run of it, after which nothing has changed.

The state of torch's random number generators and the buffers of every module that ran (BatchNorm's
running averages, say) are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import (
    InitMessenger,
    init_to_feasible,
    init_to_uniform,
)
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_aeb.distributions import SSGL
from pyro_aeb.errors import ModelError

Site = dict[str, Any]


@contextmanager
def unchanged_buffers() -> Iterator[None]:
    """Puts back the buffers of every module that runs inside."""
    saved: dict[nn.Module, dict[str, Tensor]] = {}

    def save(module: nn.Module, _: Any) -> None:
        if module not in saved:
            buffers = module.named_buffers(recurse=False)
            saved[module] = {name: buffer.clone() for name, buffer in buffers}

    handle = register_module_forward_pre_hook(save)
    try:
        yield
    finally:
        handle.remove()
        with torch.no_grad():
            for module, buffers in saved.items():
                for name, value in buffers.items():
                    module.get_buffer(name).copy_(value)


@contextmanager
def unchanged_random_numbers() -> Iterator[None]:
    """Puts back the random number generators of torch, Python and NumPy."""
    state = pyro.util.get_rng_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)


def check_continuous(site: Site) -> None:
    """
    :raises ModelError: if the site has a discrete support.
    """
    if site["fn"].support.is_discrete:
        raise ModelError(
            f"site {site['name']!r} ~ {type(site['fn']).__name__} is a discrete latent variable, "
            "which has no gradient; sum it out in the model (e.g. with "
            "dist.MixtureSameFamily) or observe it with obs="
        )


def _feasible(site: Site) -> Tensor:
    check_continuous(site)
    return init_to_feasible(site)


def look(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> dict[str, Site]:
    """
    Runs the model once and returns its sites by name, in order.

    Latent sites take the given values, or else a feasible value that is the same in every look.
    What distributions were computed from shows in their parameters' provenance; the sites' own
    values come back without. Random numbers, subsamples among them, are the same in every look.

    :param values: latent site name to constrained value.
    """

    def value_of(site: Site) -> Tensor:
        return values[site["name"]] if site["name"] in values else _feasible(site)

    with (
        unchanged_buffers(),
        unchanged_random_numbers(),
        torch.no_grad(),
        TrackProvenance(),
        InitMessenger(value_of),
    ):
        pyro.set_rng_seed(0)
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    sites: dict[str, Site] = {n: {**s} for n, s in trace.nodes.items() if s["type"] == "sample"}
    for site in sites.values():
        site["value"] = detach_provenance(site["value"])
    return sites


def init_to_default(site: Site | None = None) -> Any:
    """
    The kernel's own starting point: SSGL weights ~ Normal(0, 0.1^2); sites with an InverseGamma or
    Beta prior at the middle of their unconstrained space (1 and 1/2); all others by Pyro's
    :func:`~pyro.infer.autoguide.initialization.init_to_uniform`.
    """
    if site is None:
        return init_to_default
    fn = site["fn"]
    while isinstance(fn, pyro.distributions.Independent):
        fn = fn.base_dist
    if isinstance(fn, SSGL):
        return 0.1 * torch.randn_like(site["fn"].sample())
    if isinstance(fn, (pyro.distributions.InverseGamma, pyro.distributions.Beta)):
        return init_to_feasible(site)
    return init_to_uniform(site)


def initial_values(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    strategy: Callable[..., Any],
) -> dict[str, Tensor]:
    """
    The latent sites' first values, in constrained space, by an initialisation strategy of Pyro.

    :param strategy: a function of a site, such as those of
        :mod:`pyro.infer.autoguide.initialization`.
    """
    with unchanged_buffers(), torch.no_grad(), InitMessenger(strategy):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    latent = {n: s for n, s in trace.iter_stochastic_nodes()}
    return {name: torch.as_tensor(site["value"]).clone() for name, site in latent.items()}
