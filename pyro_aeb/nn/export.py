# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Plain torch modules with the weights of one draw, and their numbers of non-zero weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_aeb.errors import ModelError
from pyro_aeb.nn.bayesian_module import BayesianModule
from pyro_aeb.nn.layers import layer_of, table


def sparse_module(net: BayesianModule, mcmc: Any, draw: int = -1) -> nn.Module:
    """
    Return a plain module with the weights of one draw::

        module = sparse_module(net, mcmc)
        torch.save(module.state_dict(), "network.pt")

    Everything else is as in ``net.module``: the current buffers, the fixed parameters, which
    parameters require a gradient, training or evaluation mode.

    :param BayesianModule net: the network in the model that was run.
    :param mcmc: a :class:`pyro.infer.MCMC` with any kernel, after its ``run()``. With an
        :class:`~pyro_aeb.AEBKernel` also during the run, and for draws without the weights, if
        ``draw`` is -1.
    :param int draw: the number of the draw; chains count one after the other. -1 is the last draw,
        or the chain's current weights where the draws do not hold them.
    :raises TypeError: if ``net`` or ``draw`` is of the wrong kind.
    :raises ModelError: if the weights are not available, or not of the network's shapes.
    :raises IndexError: if there is no such draw.
    """
    if not isinstance(net, BayesianModule):
        raise TypeError(
            f"net is {type(net).__name__}, expected a BayesianModule, as bayesianize returns it"
        )
    if not isinstance(cast(Any, draw), Integral):
        raise TypeError(f"draw is {draw!r}, expected an integer; -1 is the last draw")
    values = _values(net, mcmc, draw)
    module = copy.deepcopy(net.module)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            if value.shape != parameters[name].shape:
                raise ModelError(
                    f"the draws of parameter {name!r} have shape {tuple(value.shape)}, expected "
                    f"{tuple(parameters[name].shape)}, the parameter's; pass the network that "
                    "was in the model"
                )
            parameters[name].copy_(value)
    return module


def _values(net: BayesianModule, mcmc: Any, draw: int) -> Mapping[str, Tensor]:
    """Return the weights of a draw, by parameter."""
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
        return {name.removeprefix(net.prefix): draws[name][draw] for name in sites}
    current = _current_values(mcmc) if draw == -1 else {}
    if all(name in current for name in sites):
        return {name.removeprefix(net.prefix): current[name] for name in sites}
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
