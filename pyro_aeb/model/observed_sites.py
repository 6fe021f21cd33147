# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Tell data from other sites that are observed, by what their values depend on.

A value that is computed from latent sites belongs to a factor of the model, or to a latent that
``poutine.reparam`` has replaced. A value that the model itself sets, beside others that come from
its arguments, is a soft constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.arguments import Arguments, map_leaves, named_tensors
from pyro_aeb.model.perturbation import perturb, trace_perturbed
from pyro_aeb.model.sites import Site, unwrap
from pyro_aeb.model.tracing import Tracer

_ORIGIN = frozenset({"data"})


class Observed(NamedTuple):
    """
    The observed sites of a model, without those of ``pyro.factor``.

    :param frozenset data: names of the sites that are data.
    :param frozenset computed: names of the sites whose values are computed from latent sites.
    :param frozenset reparametrised: those of them that ``poutine.reparam`` has made of latents.
    """

    data: frozenset[str]
    computed: frozenset[str]
    reparametrised: frozenset[str] = frozenset()


def find_observed(
    model: Callable[..., Any], arguments: Arguments, sites: Mapping[str, Site], trace: Tracer
) -> Observed:
    """
    Tell the data of a model from other observed sites. Costs at most two runs of the model.

    :param sites: of a trace at feasible values, without plates and deterministic ones.
    """
    observed = {
        name: site
        for name, site in sites.items()
        if site["is_observed"] and not isinstance(site["fn"], dist.Unit)
    }
    tensors = [tensor for _, tensor in named_tensors(arguments)]
    if len(observed) == 1 and any(s["value"] is t for s in observed.values() for t in tensors):
        return Observed(frozenset(observed), frozenset())
    values = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
    moved = perturb(sites, values, values.keys())
    traced = _trace_arguments(model, arguments, moved) if len(observed) > 1 else {}
    from_arguments = {n for n in observed.keys() & traced.keys() if comes_from(traced[n]["value"])}
    if observed and not traced:
        _, traced = trace_perturbed(sites, values, values.keys(), trace, lambda _: ())
    computed = {
        name
        for name in observed.keys() & traced.keys()
        if not _is_same(observed[name]["value"], detach_provenance(traced[name]["value"]))
    }
    rest = {n: (s["value"], bool(s["cond_indep_stack"])) for n, s in observed.items()}
    rest = {name: pair for name, pair in rest.items() if name not in computed}
    reparametrised = frozenset(name for name in computed if _is_reparametrised(observed[name]))
    data = choose_data(rest, from_arguments - computed)
    return Observed(data, frozenset(computed), reparametrised)


def choose_data(
    values: Mapping[str, tuple[Any, bool]], from_arguments: Collection[str]
) -> frozenset[str]:
    """
    Return the names of the sites that are data. Beside others, soft constraints are not.

    :param values: observed values that no latent site enters, by site, and whether the site is
        inside a plate.
    :param from_arguments: sites whose values are computed from the arguments of the model, or
        picked by the indices of a plate, as far as this is known.
    """

    def is_constraint(name: str) -> bool:
        value, in_plate = values[name]
        numbers = torch.as_tensor(value)
        if not from_arguments:
            return not in_plate and numbers.numel() == 1
        is_one_number = numbers.numel() < 2 or bool((numbers == numbers.reshape(-1)[0]).all())
        return name not in from_arguments and (is_one_number or not in_plate)

    data = frozenset(name for name in values if not is_constraint(name))
    return data or frozenset(values)


def _is_reparametrised(site: Site) -> bool:
    """Whether an observed site holds the value of a latent that is computed from another."""
    return isinstance(unwrap(site["fn"]), dist.Delta)


def track_arguments(arguments: Arguments) -> Arguments:
    """Return arguments whose tensors, and what is computed from them, :func:`comes_from` knows."""
    return map_leaves(
        lambda leaf: ProvenanceTensor(leaf, _ORIGIN) if isinstance(leaf, Tensor) else leaf,
        arguments,
        objects=True,
    )


def comes_from(value: Any) -> bool:
    """Whether a value was computed from tracked arguments, or with the indices of a plate."""
    return bool(get_provenance(value) & _ORIGIN)


class TrackIndices(Messenger):
    """Track the indices of plates as arguments are."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            msg["value"] = ProvenanceTensor(detach_provenance(msg["value"]), _ORIGIN)


def _trace_arguments(
    model: Callable[..., Any], arguments: Arguments, values: Mapping[str, Tensor]
) -> dict[str, Site]:
    """Trace a model on tracked arguments; empty if it cannot run on them."""
    try:
        with TrackIndices():
            return Tracer(model, *track_arguments(arguments))(values)
    except Exception:  # a part of the model does not support tensor subclasses
        return {}


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or (
        one.is_floating_point() and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    )
