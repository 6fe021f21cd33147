# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A look at a model: one run of it, after which nothing has changed.

The state of torch's random number generators and the buffers of every module that ran (BatchNorm's
running averages, say) are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_aeb.errors import ModelError
from pyro_aeb.model.side_effects import unchanged_buffers, unchanged_random_numbers
from pyro_aeb.priors import Group, SpikeAndSlab

Site = dict[str, Any]


def base(fn: Any) -> Any:
    """The distribution inside ``to_event``, and of a group of weights that of each."""
    while isinstance(fn, (pyro.distributions.Independent, Group)):
        fn = fn.base_dist
    return fn


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
    if "init_value" in site["infer"]:
        return site["infer"]["init_value"].detach().clone()
    if isinstance(base(site["fn"]), SpikeAndSlab):  # what follows would draw a sample for its shape
        return torch.zeros_like(site["fn"].mean)
    try:
        biject_to(site["fn"].support)
        return init_to_feasible(site)
    except NotImplementedError as error:
        raise ModelError(
            f"site {site['name']!r} ~ {type(site['fn']).__name__} has a support that no map from "
            f"unconstrained space is known for ({error}); write it with another distribution"
        ) from error


class _PlateCheck(Messenger):
    """Refuses a plate without data, and a batch that its data cannot fill."""

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            return
        size, batch = msg["fn"].size, msg["fn"].subsample_size
        if size < 1:
            raise ModelError(f"plate {msg['name']!r} has size {size}, expected at least 1 datum")
        if batch is not None and not 1 <= batch <= size:
            raise ModelError(
                f"plate {msg['name']!r} has subsample_size {batch}, expected a number from 1 to "
                f"its size, {size}"
            )


def look(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    *,
    validate: bool = False,
    grad: bool = False,
) -> dict[str, Site]:
    """
    Runs the model once and returns its sites by name, in order.

    Latent sites take the given values, or else a feasible value that is the same in every look.
    Random numbers, subsamples among them, are the same in every look too.

    :param values: latent site name to constrained value.
    :param bool validate: whether distributions check their parameters.
    :param bool grad: whether gradients with respect to the values are recorded.
    """

    def value_of(site: Site) -> Tensor:
        feasible = _feasible(site)  # even where it is not used, for the random numbers it takes
        return values.get(site["name"], feasible)

    with (
        unchanged_buffers(),
        unchanged_random_numbers(),
        torch.set_grad_enabled(grad),
        pyro.validation_enabled(validate),
        InitMessenger(value_of),
        _PlateCheck(),
    ):
        pyro.set_rng_seed(0)
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return {name: {**site} for name, site in trace.nodes.items() if site["type"] == "sample"}


def look_for_provenance(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Site]:
    """
    A look whose distributions' parameters carry the names of the sites they were computed from; see
    :mod:`pyro.ops.provenance`. Shapes are not to be trusted: of a number with provenance, PyTorch
    makes batch shape (0,). Where a model cannot run on such values, no site comes back.
    """
    try:
        with TrackProvenance():
            return look(model, args, kwargs, {})
    except Exception:  # what the model runs on has no support for tensor subclasses
        return {}


class _Found(Exception):
    """Ends a look early."""


class _FirstLatent(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.device: torch.device | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            self.device = msg["value"].device
            raise _Found


def device_of_latents(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.device | None:
    """
    The device of a model's first latent site, from a run that ends there. None where the model
    cannot run that far, as when it mixes its data with something on another device before.
    """
    first = _FirstLatent()
    with unchanged_buffers(), unchanged_random_numbers(), torch.no_grad():
        try:
            with InitMessenger(_feasible), first:
                model(*args, **kwargs)
        except (_Found, RuntimeError):
            pass
    return first.device


def init_to_default(site: Site | None = None) -> Any:
    """
    The kernel's own starting point: sites sampled with ``infer={"init_value": tensor}`` at that
    value; other spike-and-slab weights ~ Normal(0, 0.1^2); sites with an InverseGamma or Beta prior
    at the middle of their unconstrained space (1 and 1/2); all others by Pyro's
    :func:`~pyro.infer.autoguide.initialization.init_to_uniform`.
    """
    if site is None:
        return init_to_default
    if "init_value" in site["infer"]:
        return site["infer"]["init_value"].detach().clone()
    fn = base(site["fn"])
    if isinstance(fn, SpikeAndSlab):
        return 0.1 * torch.randn_like(site["fn"].mean)
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
