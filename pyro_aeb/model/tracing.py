# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Traces of a model that have no side effects.

The global random number generators and the buffers of every module that ran, such as BatchNorm's
running averages, are restored after a trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.inspect import TrackProvenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.errors import ModelError
from pyro_aeb.model.fixed_parameters import is_learnable
from pyro_aeb.model.initial_values import draw_initial_values, init_to_zero
from pyro_aeb.model.side_effects import Place, preserve_buffers, preserve_random_state
from pyro_aeb.model.sites import Site, as_numbers, check_distribution, log_density
from pyro_aeb.model.value_writes import RefuseWrites


class _Plates(Messenger):
    """
    Refuse plates without data, and batches larger than the data. Give the others their indices.

    :param indices: of plates that take a part of their data; by default some of all over the data,
        without the permutation of all of them that Pyro draws.
    """

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._indices = indices

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
        if msg["value"] is None:
            msg["value"] = self._indices.get(msg["name"])
        if msg["value"] is None and batch is not None and batch < size:
            step = round(0.618 * size)
            while math.gcd(step, size) > 1:  # no index comes twice
                step += 1
            msg["value"] = torch.arange(batch, device=msg["fn"].device) * step % size


class Tracer:
    """Trace a model, without side effects."""

    changed_buffers: tuple[Place, ...] = ()
    """
    The places of the buffers that the model changes, from the trace that changed most of them: a
    running average of zeros stays as it is.
    """

    parameters: Mapping[str, Any] = {}
    """The parameters of the last trace that an optimizer would learn, by name."""

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.run = partial(model, *args, **kwargs)
        self._replaced: set[Any] = set()  # latent sites that poutine.reparam computes from others
        self.first_values: Mapping[str, Tensor] = {}
        """Values of latent sites in place of feasible ones."""
        self.indices: Mapping[str, Tensor] = {}
        """Indices of plates in place of those spread over their data."""

    def __call__(
        self, values: Mapping[str, Tensor], *, validate: bool = False, grad: bool = False
    ) -> dict[str, Site]:
        """
        Run the model once; return its sites by name, in order.

        Latent sites take the given values, or else those of :attr:`first_values`, or else feasible
        ones. Feasible values, subsamples and random numbers are the same in every trace.

        :param values: latent site name to constrained value.
        :param bool validate: whether distributions check their parameters, and writes into the
            values of latent sites are refused.
        :param bool grad: whether gradients with respect to the values are recorded.
        """
        while True:
            known = len(self._replaced)
            sites = self._trace(values, validate, grad)
            if len(self._replaced) == known:  # else values were given to sites that are computed
                return sites

    def _trace(self, values: Mapping[str, Tensor], validate: bool, grad: bool) -> dict[str, Site]:
        writes = RefuseWrites() if validate else None
        given: set[Any] = set()

        def value_of(site: Site) -> Tensor | None:
            name: str = site["name"]
            if name in self._replaced:
                return None
            given.add(name)
            value = values.get(name, self.first_values.get(name))
            if value is None:
                state = torch.get_rng_state()  # a feasible value takes no random numbers
                value = init_to_zero(site)
                torch.set_rng_state(state)
            if writes is not None:
                writes.add(name, value)
            return value

        with (
            preserve_buffers() as changed,
            preserve_random_state(),
            torch.set_grad_enabled(grad),
            pyro.validation_enabled(validate),
            InitMessenger(value_of),
            _Plates(self.indices),
            nullcontext() if writes is None else writes,
        ):
            pyro.set_rng_seed(0)
            trace = poutine.trace(self.run).get_trace()
        if writes is not None:
            writes.check()
        if len(changed) > len(self.changed_buffers):
            self.changed_buffers = tuple(changed)
        self.parameters = {n: node for n, node in trace.nodes.items() if is_learnable(node)}
        sites = {n: {**site} for n, site in trace.nodes.items() if site["type"] == "sample"}
        for site in sites.values():
            if isinstance(site["value"], (int, float)):  # obs=0.0
                site["value"] = torch.as_tensor(site["value"])
            if site["is_observed"]:
                site["value"] = as_numbers(site["fn"], site["value"])
            if site["is_observed"] and site["name"] in given:
                self._replaced.add(str(site["name"]))
        return sites

    def draw(self, strategy: Callable[..., Any], seed: int) -> dict[str, Tensor]:
        """Return initial values of the latent sites; see :func:`draw_initial_values`."""
        with preserve_random_state():
            pyro.set_rng_seed(seed)
            return draw_initial_values(self.run, (), {}, strategy)


def trace_sites(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> dict[str, Site]:
    """Return the sites of one trace by a :class:`Tracer`."""
    return Tracer(model, args, kwargs)(values)


def find_failure(model: Callable[..., Any], arguments: Arguments) -> Exception | None:
    """Return the exception that a model's log density raises on arguments, None if it has one."""
    try:
        for site in Tracer(model, *arguments)({}).values():
            if not isinstance(site["value"], (Tensor, int, float)):
                kind = type(site["value"]).__name__
                return TypeError(f"site {site['name']!r} has a value that is a {kind}")
            if not site_is_subsample(cast(Any, site)):
                site["fn"].log_prob(torch.as_tensor(site["value"]), *site["args"], **site["kwargs"])
    except Exception as error:  # of whatever kind
        return error
    return None


def trace_provenance(trace: Tracer) -> dict[str, Site]:
    """
    Return sites whose distributions' parameters carry the names of the sites they were computed
    from; see :mod:`pyro.ops.provenance`. Shapes are not reliable: PyTorch gives a number with
    provenance the batch shape (0,). Empty for a model that cannot run on such values.
    """
    try:
        with TrackProvenance():
            return trace({})
    except Exception:  # a part of the model does not support tensor subclasses
        return {}


class _LastSite(Messenger):
    """Knows the last site that a model has reached."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.name = msg["name"]


def find_failing_site(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    indices: Mapping[str, Tensor],
) -> str | None:
    """
    Return the site that a model fails at, the last one that it reaches or the one whose density
    fails; None if it does not fail.

    :param indices: of the data in its plates.
    """
    last = _LastSite()
    tracer = Tracer(last(model), args, kwargs)
    tracer.indices = indices
    try:
        for site in tracer(values, validate=True).values():
            last.name = site["name"]
            log_density(site)
    except Exception:
        return last.name
    return None


class _FirstLatent(Exception):
    """Ends a run of the model at its first latent site."""


def find_latent_device(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.device | None:
    """
    Return the device of a model's first latent site, where the run ends. None if the model fails
    before, as when it mixes its data with something on another device.
    """
    device: torch.device | None = None

    def stop(site: Site) -> Tensor:
        nonlocal device
        check_distribution(site)
        if site["fn"].support.is_discrete:
            return cast(Tensor, site["fn"].sample())
        device = init_to_zero(site).device
        raise _FirstLatent

    with preserve_buffers(), preserve_random_state(), torch.no_grad(), InitMessenger(stop):
        with suppress(_FirstLatent, RuntimeError):
            model(*args, **kwargs)
    return device
