# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
From a draw of a Bayesian network back to a torch module, with the zeros in place, and what such a
module weighs.
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
    A plain module with the weights of one draw::

        module = sparse_module(net, mcmc)
        torch.save(module.state_dict(), "network.pt")

    All else is as in ``net.module``: the buffers as they stand, the fixed parameters, which
    parameters require a gradient, training or evaluation mode.

    :param BayesianModule net: the network in the model that was run.
    :param mcmc: a :class:`pyro.infer.MCMC` of any kernel, after its ``run()``; one of an
        :class:`~pyro_aeb.AEBKernel` will do during it, and where its draws do not hold the
        weights, for the last draw.
    :param int draw: which draw; of several chains they count one after the other. -1 is the last
        one, and where the draws do not hold the weights, the weights as they stand.
    :raises ModelError: if the weights are not there, or are not the network's.
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
    """The weights' values in a draw, by parameter."""
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
    current = _current(mcmc) if draw == -1 else {}
    missing = [name for name in sites if name not in current]
    if not missing:
        return {name.removeprefix(net.prefix): current[name] for name in sites}
    lacking = [name for name in sites if name not in draws]
    if draw == -1:
        instead = (
            "and the kernel's last state is not there either (chains that ran in processes of "
            "their own leave none behind, and a later run of the kernel takes its place)"
        )
    else:
        instead = "and the kernel's last state stands in for draw=-1 only"
    raise ModelError(
        f"the draws do not hold {len(lacking)} of the network's {len(sites)} weights, "
        f"{lacking[0]!r} first, {instead}; name them in AEBKernel(..., save=[*net.sparse_sites, "
        "*net.dense_sites]), or call sparse_module in the run, from MCMC's hook_fn"
    )


def _current(mcmc: Any) -> Mapping[str, Tensor]:
    """The values of all sites as the chain under way, or the last one, stands; empty if unknown."""
    try:
        chain = mcmc.kernel.chain
    except (AttributeError, RuntimeError):  # another kernel, or none that was started here
        return {}
    # A kernel may have gone on to another run since, or its chains have run in other processes.
    finished = list((getattr(mcmc, "_diagnostics", None) or [None])[-1:])
    run = finished[0].get("run") if isinstance(finished[0], dict) else None
    ours = run is None or run == chain.name or not chain.finished
    return chain.values_by_chain()[-1] if ours else {}


def masks(module: nn.Module) -> dict[str, Tensor]:
    """
    Which weights of a module are not zero.

    :param torch.nn.Module module: a plain module, such as :func:`sparse_module` returns.
    :returns: parameter name to bool tensor of the parameter's shape.
    """
    return {name: parameter.detach() != 0 for name, parameter in module.named_parameters()}


@dataclass(frozen=True)
class LayerCount:
    """
    The weights of a layer.

    :param str name: the layer, as in ``named_modules()``.
    :param int total: number of its weights.
    :param int nonzero: number of those that are not zero.
    """

    name: str
    total: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return 1.0 - self.nonzero / self.total if self.total else 0.0


@dataclass(frozen=True)
class ParameterCounts:
    """
    The weights of a module; as a string, a table.

    :param layers: of every layer that owns parameters itself.
    """

    layers: tuple[LayerCount, ...]

    @property
    def total(self) -> int:
        """Number of weights; those that several layers share count once."""
        return sum(layer.total for layer in self.layers)

    @property
    def nonzero(self) -> int:
        """Number of weights that are not zero."""
        return sum(layer.nonzero for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self._all.sparsity

    @property
    def _all(self) -> LayerCount:
        return LayerCount("all", self.total, self.nonzero)

    def __str__(self) -> str:
        rows = [
            (layer.name, f"{layer.total:,}", f"{layer.nonzero:,}", f"{100 * layer.sparsity:.2f} %")
            for layer in (*self.layers, self._all)
        ]
        return table(("layer", "weights", "not zero", "sparsity"), rows)


def parameter_counts(module: nn.Module) -> ParameterCounts:
    """
    How many weights a module has, and how many are not zero, layer by layer.

    :param torch.nn.Module module: a plain module, such as :func:`sparse_module` returns.
    """
    counts: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        count = counts.setdefault(layer_of(name), [0, 0])
        count[0] += parameter.numel()
        count[1] += int(torch.count_nonzero(parameter))
    return ParameterCounts(tuple(LayerCount(name, *count) for name, count in counts.items()))
