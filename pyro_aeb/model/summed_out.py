# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Models whose discrete latent sites are summed out, by Pyro's own enumeration.

Sites marked ``infer={"enumerate": "parallel"}``, and the observed sites that depend on them, are
taken out of a run of the model; the log of their sum enters it as one factor. All other sites stay
as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.model.tracing import Site, as_numbers, init_to_value_or_sample

FACTOR = "sum over discrete sites"
"""The site of the factor, in error messages."""

BY_HAND = """or sum it out by hand, in a function of the sites concerned:
    with poutine.block():
        trace = poutine.trace(poutine.enum(part, first_available_dim=-2)).get_trace()
    trace.compute_log_prob()
    evaluator = pyro.infer.mcmc.util.TraceEinsumEvaluator(trace, True, 1)  # 1: depth of plates
    pyro.factor("part", evaluator.log_prob(trace))"""


class SummedOut:
    """
    A model whose enumerated sites are summed out.

    :param args: the model's arguments, for one run that finds how deep its plates are nested.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._model = model
        self._nesting = _plate_nesting(model, args, kwargs)
        self.hidden: dict[str, Site] = {}
        """The observed sites that the last run without gradients took out, by name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        sites = _TakeOut(self._nesting)
        with sites, poutine.enum(first_available_dim=-1 - self._nesting):
            result = self._model(*args, **kwargs)
        observed = {n: s for n, s in sites.trace.nodes.items() if s.get("is_observed")}
        if not torch.is_grad_enabled():
            self.hidden = {name: {**site} for name, site in observed.items()}
        if len(sites.trace.nodes) > len(observed):
            pyro.factor(FACTOR, _log_sum(sites.trace))
        return result


def hidden_sites(model: Any) -> dict[str, Site]:
    """Return the observed sites, but for factors, that the sums of a model have taken out."""
    hidden = model.hidden if isinstance(model, SummedOut) else {}
    return {n: s for n, s in hidden.items() if not isinstance(s["fn"], pyro.distributions.Unit)}


class _TakeOut(Messenger):
    """Hide enumerated sites and the observed sites that depend on them, and keep them."""

    def __init__(self, nesting: int) -> None:
        super().__init__()
        self._nesting = nesting
        self.trace = poutine.Trace()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["infer"].get("_enumerate_dim") is None:
            if len(msg["fn"].batch_shape) <= self._nesting:
                return
            if not msg["is_observed"]:
                raise ModelError(
                    f"latent site {msg['name']!r} depends on a discrete site that is summed out, "
                    "expected only observed sites and other discrete ones to do so; draw it for "
                    f"every value of the discrete site and pick one, {BY_HAND}"
                )
        msg["infer"]["_is_taken_out"] = msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"].get("_is_taken_out"):
            value = as_numbers(msg["fn"], msg["value"]) if msg["is_observed"] else msg["value"]
            self.trace.add_node(msg["name"], **{**msg, "value": value})


def _log_sum(trace: Any) -> Tensor:
    """
    Return the log of the sum over all values of the enumerated sites, times the scale N/n that the
    sites of each sum share.
    """
    scales: dict[str, Any] = {}
    for name, site in trace.nodes.items():
        scales[name], site["scale"] = site["scale"], 1.0
    trace.compute_log_prob()
    trace.pack_tensors()
    plates = set(trace.plate_to_symbol.values())
    summed = set(trace.symbol_to_dim) - plates
    total: Tensor | None = None
    for names, scale in _components(trace, summed, scales):
        factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for name in names:
            site = trace.nodes[name]
            frames = (frame for frame in site["cond_indep_stack"] if frame.vectorized)
            ordinal = frozenset(trace.plate_to_symbol[frame.name] for frame in frames)
            factors.setdefault(ordinal, []).append(site["packed"]["log_prob"])
        log_sum = contract_to_tensor(factors, summed)
        log_sum = log_sum if scale == 1.0 else log_sum * scale
        total = log_sum if total is None else total + log_sum
    assert total is not None
    return total


def _components(
    trace: Any, summed: set[str], scales: Mapping[str, Any]
) -> list[tuple[list[str], float]]:
    """
    Return the sites of each sum, and their scale.

    :raises ModelError: if the sites of one sum have different scales.
    """
    if all(isinstance(s, (int, float)) for s in scales.values()) and len({*scales.values()}) == 1:
        return [(list(scales), next(iter(scales.values())))]
    groups: list[tuple[set[str], list[str]]] = []
    for name, site in trace.nodes.items():
        symbols, names = set(site["packed"]["log_prob"]._pyro_dims) & summed, [name]
        apart = []
        for group in groups:
            if group[0] & symbols:
                symbols, names = symbols | group[0], group[1] + names
            else:
                apart.append(group)
        groups = [*apart, (symbols, names)]
    components = []
    for _, names in groups:
        values = torch.cat(
            [torch.as_tensor(scales[n], dtype=torch.float64).reshape(-1) for n in names]
        )
        if not torch.allclose(values, values[:1], rtol=1e-6):
            raise _scale_error(trace, names)
        components.append((names, float(values[0])))
    return components


def _scale_error(trace: Any, names: list[str]) -> ModelError:
    discrete = [name for name in names if not trace.nodes[name]["is_observed"]]
    return ModelError(
        f"the discrete sites {discrete} and the observed sites that depend on them are scaled by "
        "different numbers, as where a plate that takes a part of its data holds some of them "
        "only: the sum over them needs all data, and is no sum over data; give the plate "
        "subsample_size=None, put the discrete site into the plate, or leave poutine.scale out"
    )


def _plate_nesting(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Return how deep a model's plates are nested, by one run without enumeration."""
    with (
        preserve_buffers(),
        preserve_random_state(),
        torch.no_grad(),
        InitMessenger(init_to_value_or_sample),
    ):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    sites = [site for _, site in trace.nodes.items() if site["type"] == "sample"]
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max([-frame.dim for frame in frames if frame.dim is not None], default=0)
