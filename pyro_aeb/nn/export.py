# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Plain torch modules with the weights of one draw, and their numbers of non-zero weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_aeb.errors import ModelError
from pyro_aeb.model.tracing import find_failure
from pyro_aeb.nn.batches import as_batches
from pyro_aeb.nn.bayesian_module import BayesianModule
from pyro_aeb.nn.copying import compute_weights, copy_module
from pyro_aeb.nn.draw_buffers import buffers_error, fit_spectral_norms, is_computed, statistics_of
from pyro_aeb.nn.layers import layer_of, table
from pyro_aeb.nn.predictive import changed_buffers, estimate_statistics


def sparse_module(
    net: BayesianModule, mcmc: Any, draw: int = -1, *, recalibrate: Any = None
) -> nn.Module:
    """
    Return a plain module with the weights of one draw::

        module = sparse_module(net, mcmc)
        torch.save(module.state_dict(), "network.pt")

    Everything else is as in ``net.module``: the fixed parameters, which parameters require a
    gradient, training or evaluation mode. Spectral norms are those of the draw. The running
    averages of BatchNorm and InstanceNorm are estimated by ``recalibrate``; without it, the last
    draw has those that the run left, which lag behind its weights.

    :param BayesianModule net: the network in the model that was run.
    :param mcmc: a :class:`pyro.infer.MCMC` with any kernel, after its ``run()``. With an
        :class:`~pyro_aeb.AEBKernel` also during the run, and for draws without the weights, if
        ``draw`` is -1.
    :param int draw: the number of the draw; chains count one after the other. -1 is the last draw,
        or the chain's current weights where the draws do not hold them.
    :param recalibrate: training data, as of :class:`~pyro_aeb.nn.PosteriorPredictive`: a DataLoader
        or another iterable of batches, or the model's arguments as a tuple.
    :raises TypeError: if ``net`` or ``draw`` is of the wrong kind.
    :raises ModelError: if the weights are not available, or not of the network's shapes; or if a
        buffer follows the weights and is not that of the draw.
    :raises IndexError: if there is no such draw.
    """
    if not isinstance(net, BayesianModule):
        raise TypeError(
            f"net is {type(net).__name__}, expected a BayesianModule, as bayesianize returns it"
        )
    if not isinstance(cast(Any, draw), Integral):
        raise TypeError(f"draw is {draw!r}, expected an integer; -1 is the last draw")
    values, is_last = _values(net, mcmc, draw)
    module = copy_module(net.module)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for site in (*net.sparse_sites, *net.dense_sites):
            name, value = site.removeprefix(net.prefix), values[site]
            if value.shape != parameters[name].shape:
                raise ModelError(
                    f"the draws of parameter {name!r} have shape {tuple(value.shape)}, expected "
                    f"{tuple(parameters[name].shape)}, the parameter's; pass the network that "
                    "was in the model"
                )
            parameters[name].copy_(value)
    _fit_buffers(module, net, mcmc, values, is_last, recalibrate)
    compute_weights(module)
    return module


def _fit_buffers(
    module: nn.Module,
    net: BayesianModule,
    mcmc: Any,
    values: Mapping[str, Tensor],
    is_last: bool,
    recalibrate: Any,
) -> None:
    """
    Give an exported module the buffers of its draw.

    :param values: all sites of the draw.
    :param bool is_last: whether the buffers in the network are those of the draw.
    :raises ModelError: if a buffer follows the weights and cannot be computed.
    """
    copies = dict(zip(net.module.modules(), module.modules(), strict=True))
    run = changed_buffers(mcmc)
    changed = {part: run.names(part) for part in copies}
    follow = {copy for part, copy in copies.items() if changed[part] or part.training}
    if is_last and (buffers := mcmc.kernel.chain.buffers).places:
        for (part, name), value in zip(buffers.places, buffers.values_of_last(), strict=True):
            if part in copies:
                copies[part]._buffers[name] = value.clone()
    fit_spectral_norms(module, follow.__contains__)
    estimated: Mapping[nn.Module, Any] = {}
    if recalibrate is not None:
        failure = partial(find_failure, mcmc.kernel.model)
        batches = as_batches(recalibrate, "recalibrate", failure)
        estimated = estimate_statistics(mcmc, values, batches, net.latent_sites)
    for part in copies.keys() & estimated.keys():
        copies[part]._buffers.update(estimated[part])
    if not is_last:
        stale = [
            (copy, name)
            for part, copy in copies.items()
            for name in {**dict.fromkeys(changed[part]), **dict.fromkeys(statistics_of(part))}
            if part not in estimated and not is_computed(part, name)
        ]
        if stale:
            raise buffers_error(stale, [module])


def _values(net: BayesianModule, mcmc: Any, draw: int) -> tuple[Mapping[str, Tensor], bool]:
    """Return all sites of a draw, and whether it is the last state of a chain in this process."""
    sites = (*net.sparse_sites, *net.dense_sites)
    # MCMC holds no draws before its run has ended, StreamingMCMC never does.
    draws = mcmc.get_samples() if getattr(mcmc, "_samples", None) else {}
    if all(name in draws for name in sites):
        count = len(draws[sites[0]])
        if not -count <= draw < count:
            raise IndexError(
                f"draw is {draw}, expected a number from {-count} to {count - 1}: there are "
                f"{count} draws"
            )
        values = {name: draws[name][draw] for name in draws}
        current = _current_values(mcmc)
        return values, all(
            name in current and torch.equal(current[name], values[name]) for name in sites
        )
    current = _current_values(mcmc) if draw == -1 else {}
    if all(name in current for name in sites):
        return current, True
    missing = [name for name in sites if name not in draws]
    if draw == -1:
        reason = (
            "and the kernel's last state is not available either (chains that ran in worker "
            "processes leave none behind, and a later run of the kernel replaces it)"
        )
    else:
        reason = "and the kernel's last state replaces draw=-1 only"
    raise ModelError(
        f"the draws do not hold {len(missing)} of the network's {len(sites)} weights, "
        f"{missing[0]!r} first, {reason}; name them in AEBKernel(..., save=[*net.sparse_sites, "
        "*net.dense_sites]), or call sparse_module in the run, from MCMC's hook_fn"
    )


def _current_values(mcmc: Any) -> Mapping[str, Tensor]:
    """Return all sites' values in the current or the last chain; empty if it is not available."""
    try:
        chain = mcmc.kernel.chain
    except (AttributeError, RuntimeError):  # another kernel, or none that was started here
        return {}
    # The kernel's chain may be of a later run, or this run's chains ran in worker processes.
    report = (getattr(mcmc, "_diagnostics", None) or [None])[-1]
    run = report.get("run") if isinstance(report, dict) else None
    is_of_run = run is None or run == chain.name or not chain.finished
    return chain.values_by_chain()[-1] if is_of_run else {}


def masks(module: nn.Module) -> dict[str, Tensor]:
    """
    Return masks of a module's non-zero weights.

    :param torch.nn.Module module: a plain module, such as :func:`sparse_module` returns.
    :returns: parameter name to bool tensor of the parameter's shape.
    """
    return {name: parameter.detach() != 0 for name, parameter in module.named_parameters()}


@dataclass(frozen=True)
class LayerCount:
    """
    The weights of a layer.

    :param str name: the layer, as in ``named_modules()``.
    :param int total: the number of its weights.
    :param int nonzero: the number of those that are not zero.
    """

    name: str
    total: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """The share of the weights that are zero."""
        return 1.0 - self.nonzero / self.total if self.total else 0.0


@dataclass(frozen=True)
class ParameterCounts(LayerCount):
    """
    The weights of a module; a table, as a string. Weights that several layers share count once.

    :param layers: the counts of every layer that owns parameters itself.
    """

    layers: tuple[LayerCount, ...]

    def __str__(self) -> str:
        rows = [
            (count.name, f"{count.total:,}", f"{count.nonzero:,}", f"{100 * count.sparsity:.2f} %")
            for count in (*self.layers, self)
        ]
        return table(("layer", "weights", "not zero", "sparsity"), rows)


def parameter_counts(module: nn.Module) -> ParameterCounts:
    """
    Count a module's weights, and those that are not zero, layer by layer.

    :param torch.nn.Module module: a plain module, such as :func:`sparse_module` returns.
    """
    counts: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        count = counts.setdefault(layer_of(name), [0, 0])
        count[0] += parameter.numel()
        count[1] += int(torch.count_nonzero(parameter))
    total, nonzero = (sum(count[i] for count in counts.values()) for i in range(2))
    layers = tuple(LayerCount(name, *count) for name, count in counts.items())
    return ParameterCounts("all", total, nonzero, layers)
