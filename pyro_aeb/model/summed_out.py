# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Models whose discrete latent sites are summed out, by Pyro's own enumeration.

Discrete latent sites whose values can be listed, and the observed sites that depend on them, are
taken out of a run of the model; the log of their sum enters it as one factor. All other sites stay
as they are. As in Pyro's NUTS, no site needs the mark ``infer={"enumerate": "parallel"}``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.packed import broadcast_all, unpack
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.errors import ModelError, first_line, is_domain_error
from pyro_aeb.model.initial_values import first_value, init_to_default
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.model.sites import Site, as_numbers
from pyro_aeb.model.structure import has_weights

FACTOR = "sum over discrete sites"
"""The site of the factor, in error messages."""

STARTS = 5
"""How many first values are tried for a comparison of densities that are not zero."""

VECTORISE = (
    "write the model for tensors with the values of a discrete site along a new leading axis, as "
    "for NUTS: no sum, sort, reshape or branch of such a tensor, an index into several axes by "
    "pyro.ops.indexing.Vindex, and data in a plate or in an event, .to_event(1)"
)

BY_HAND = """or sum it out by hand, in a function of the sites concerned:
    with poutine.block():
        trace = poutine.trace(poutine.enum(part, first_available_dim=-2)).get_trace()
    trace.compute_log_prob()
    evaluator = pyro.infer.mcmc.util.TraceEinsumEvaluator(trace, True, 1)  # 1: depth of plates
    pyro.factor("part", evaluator.log_prob(trace))"""


class SummedOut:
    """
    A model whose enumerated sites are summed out.

    :param args: the model's arguments, for a few runs that find how deep its plates are nested, and
        whether it may run with all values of the discrete sites at once.
    :param strategy: gives values of the continuous sites for these runs.
    :raises ModelError: if it may not.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        strategy: Callable[..., Any] = init_to_default,
    ) -> None:
        self._plain, self._model = model, config_enumerate(model)
        self.hidden: dict[str, Site] = {}
        """The observed sites that the last run without gradients took out, by name."""
        for seed in range(STARTS):
            try:
                first = _run_plainly(model, args, kwargs, strategy, seed)
            except Exception as error:
                if seed == STARTS - 1 or not is_domain_error(error):
                    raise
                continue
            self._nesting = _plate_nesting(first)
            if self._is_compared(first, args, kwargs):
                return

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        sites = _TakeOut(self._nesting)
        result = self._enumerate(sites, args, kwargs)
        observed = {n: s for n, s in sites.trace.nodes.items() if s.get("is_observed")}
        if not torch.is_grad_enabled():
            self.hidden = {name: {**site} for name, site in observed.items()}
        if len(sites.trace.nodes) > len(observed):
            pyro.factor(FACTOR, _log_sum(sites.trace))
        return result

    def _enumerate(self, sites: _TakeOut, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with sites, poutine.enum(first_available_dim=-1 - self._nesting):
            return self._model(*args, **kwargs)

    def _is_compared(self, first: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """
        Compare log densities at the values of a trace: of the model as it is written, and of the
        terms of its sums at these values. Return False if the values have no density.

        :raises ModelError: if they differ, or the model fails with all values at once.
        """
        with _without_effects(), poutine.replay(trace=first):
            plain = poutine.trace(self._plain).get_trace(*args, **kwargs)
        expected, zero = _log_densities(plain), torch.zeros(())
        with _explain_failures():
            hidden, visible = self._run_on(first, args, kwargs)
            discrete = [name for name, site in hidden.nodes.items() if not site["is_observed"]]
            expected["sum"] = sum((expected.pop(name, zero) for name in hidden.nodes), start=zero)
            factors = [_restrict(hidden, name, plain.nodes[name]["value"]) for name in discrete]
            found = {**_log_densities(visible), "sum": _log_sum(hidden, factors)}
        for name, number in found.items():
            right = expected.get(name, zero)
            if not bool(torch.isfinite(right)):
                return False
            if bool((number - right).abs() > 1e-3 * (1.0 + right.abs())):
                where = "" if name == "sum" else f" of site {name!r}"
                raise ModelError(
                    f"the log density{where} at one value of the discrete sites {discrete} is "
                    f"{float(right):.6g}, but {float(number):.6g} where the model runs "
                    f"with all their values at once, to sum them out; {VECTORISE}"
                )
        return True

    def _run_on(
        self, first: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """
        Run the model with all values of its discrete sites at once, and a trace's values of the
        others. Return the traces of the sites taken out, and of the others.
        """
        continuous, sites, visible = first.copy(), _TakeOut(self._nesting), poutine.trace()
        for name, site in first.iter_stochastic_nodes():
            if getattr(site["fn"], "has_enumerate_support", False):
                continuous.remove_node(name)
        with _without_effects(), visible, poutine.replay(trace=continuous):
            self._enumerate(sites, args, kwargs)
        return sites.trace, visible.trace

    def log_likelihood(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, Tensor]:
        """
        Return the observed site that depends on discrete sites, and the log density of each of its
        data, their values summed out.

        :raises ModelError: if a sum concerns several data or sites.
        """
        sites = _TakeOut(self._nesting)
        self._enumerate(sites, args, kwargs)
        trace = sites.trace
        observed = [name for name, site in trace.nodes.items() if site["is_observed"]]
        is_weighted = any(has_weights(site["scale"]) for site in trace.nodes.values())
        summed = _pack(trace)
        terms = contract_tensor_tree(_factors(trace, trace.nodes), summed)
        if len(observed) != 1 or len(terms) != 1 or is_weighted or not all(terms):
            raise ModelError(
                f"the data {sorted(observed)} depend on discrete sites that are summed out, and "
                "have no density for each datum, expected one observed site whose discrete sites "
                "are in its plate; leave log_likelihood= out, or write the sum as a distribution, "
                "such as dist.MixtureSameFamily"
            )
        (parts,) = terms.values()
        return observed[0], unpack(sum(parts[1:], start=parts[0]), trace.symbol_to_dim)


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


def _log_sum(trace: Any, restrictions: Iterable[str] = ()) -> Tensor:
    """
    Return the log of the sum over all values of the enumerated sites, times the scale N/n that the
    sites of each sum share.

    :param restrictions: names of factors that leave one value of a site.
    """
    scales = {name: site["scale"] for name, site in trace.nodes.items()}
    summed = _pack(trace)
    for name in restrictions:
        _spread(trace, name)
    total: Tensor | None = None
    for names, scale in _components(trace, summed, scales):
        log_sum = contract_to_tensor(_factors(trace, names), summed)
        log_sum = log_sum if scale == 1.0 else log_sum * scale
        total = log_sum if total is None else total + log_sum
    assert total is not None
    return total


def _pack(trace: Any) -> set[str]:
    """Pack the log densities of a trace without scales; return the dimensions to sum over."""
    for site in trace.nodes.values():
        site["scale"] = 1.0
    trace.compute_log_prob()
    trace.pack_tensors()
    return set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())


def _factors(trace: Any, names: Iterable[str]) -> OrderedDict[frozenset[str], list[Tensor]]:
    """Return the packed log densities of some sites, by the plates around them."""
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for name in names:
        site = trace.nodes[name]
        frames = (frame for frame in site["cond_indep_stack"] if frame.vectorized)
        plates = frozenset(trace.plate_to_symbol[frame.name] for frame in frames)
        factors.setdefault(plates, []).append(site["packed"]["log_prob"])
    return factors


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


@contextmanager
def _explain_failures() -> Iterator[None]:
    """Turn the failure of a model with all values at once into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of whatever kind
        raise ModelError(
            "the model fails where it runs with all values of its discrete sites at once, to sum "
            f"them out: {first_line(error)} {VECTORISE}"
        ) from error


@contextmanager
def _without_effects(seed: int = 0) -> Iterator[None]:
    """Run a model with random numbers of a seed, without gradients and side effects."""
    with preserve_buffers(), preserve_random_state(), torch.no_grad():
        pyro.set_rng_seed(seed)
        yield


def _run_plainly(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    strategy: Callable[..., Any],
    seed: int,
) -> Any:
    """
    Return a trace without enumeration, at samples of discrete sites, and at values of continuous
    ones that a strategy gives.
    """
    with _without_effects(seed), InitMessenger(partial(first_value, strategy=strategy)):
        return poutine.trace(model).get_trace(*args, **kwargs)


def _log_densities(trace: Any) -> dict[str, Tensor]:
    """Return the log density of every site of a trace."""
    nodes = [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample"]
    sites = {name: site for name, site in nodes if not site_is_subsample(site)}
    for site in sites.values():
        site["value"] = as_numbers(site["fn"], site["value"])
    trace.compute_log_prob(lambda name, _: name in sites)
    return {name: site["log_prob_sum"] for name, site in sites.items()}


def _restrict(trace: Any, name: str, value: Any) -> str:
    """
    Add a factor to the trace of an enumerated site: 1 at one value, 0 at all others. Return its
    name.
    """
    site = trace.nodes[name]
    is_value = site["value"] == value
    for _ in range(site["fn"].event_dim):
        is_value = is_value.all(-1)
    fn = pyro.distributions.Unit(torch.where(is_value, 0.0, -torch.inf))
    factor = {**site, "fn": fn, "value": fn.sample(), "mask": None, "is_observed": True}
    trace.add_node(f"{name} at one value", **factor)
    return f"{name} at one value"


def _spread(trace: Any, restriction: str) -> None:
    """
    Multiply every packed density that depends on a site by the factor that leaves one value of it.
    The sum is the same, and does not underflow where that value is much less likely than another.
    """
    factor = trace.nodes[restriction]["packed"]["log_prob"]
    for site in trace.nodes.values():
        log_prob = site["packed"]["log_prob"]
        if log_prob is not factor and set(factor._pyro_dims) <= set(log_prob._pyro_dims):
            both, restricted = broadcast_all(log_prob, factor)
            site["packed"]["log_prob"] = both + restricted
            site["packed"]["log_prob"]._pyro_dims = both._pyro_dims


def _plate_nesting(trace: Any) -> int:
    """Return how deep the plates of a trace are nested."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max([-frame.dim for frame in frames if frame.dim is not None], default=0)
