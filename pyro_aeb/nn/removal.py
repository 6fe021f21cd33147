# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Smaller networks: units whose weights are all zero are removed, with their inputs to the next layer.

A unit without weights gives its bias at every datum, which layers in between turn into another
constant. It goes into the bias of the next layer, so that outputs stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten

from pyro_aeb.errors import ModelError, shorten
from pyro_aeb.nn.copying import copy_module

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Softplus),
    *(nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
)
_MAX_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_MEAN_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus),
    *(torch.relu, torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.hardswish, F.hardtanh),
}
_METHODS = {"relu", "tanh", "sigmoid"}


class Chain(NamedTuple):
    """
    Two layers, of which the second is the only one that gets the first one's outputs.

    :param between: the nodes of what the outputs pass through.
    :param bool is_flattened: whether the axes of the units and of space become one.
    """

    first: nn.Module
    between: list[fx.Node]
    second: nn.Module
    is_flattened: bool


def remove_units(module: nn.Module, *inputs: Any) -> nn.Module:
    """
    Return a smaller module without the units whose weights are all zero, such as
    :class:`~pyro_aeb.UnitPruning` leaves them::

        module = sparse_module(net, mcmc)
        small = remove_units(module, X[:16])

    In evaluation mode its outputs are those of the module, up to rounding. Removed are rows of
    ``Linear`` and filters of convolutions whose outputs pass only through BatchNorm, Dropout,
    activations, pooling and ``flatten`` to one other such layer. All other units stay: those that
    are added to others, such as by a residual connection, those of layers that are called twice or
    share weights, and those that give a constant other than zero to a convolution that pads with
    zeros.

    :param torch.nn.Module module: a plain module.
    :param inputs: its inputs for some data. The outputs of both are compared.
    :raises TypeError: if ``module`` is no module.
    :raises ModelError: if the module has units without weights and none can be removed, if its
        ``forward`` cannot be traced by :mod:`torch.fx`, or the outputs are not the same.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {module!r}, expected a torch.nn.Module, as of sparse_module")
    small = copy_module(module).eval()
    graph = _trace(small)
    kept: list[str] = []
    count = 0
    with torch.no_grad():
        for node in graph.nodes:
            layer = _layer_of(small, node)
            if type(layer) not in _LAYERS or not bool(_find_zeros(layer).any()):
                continue
            chain = _find_chain(small, graph, node)
            removed = 0 if isinstance(chain, str) else _shrink(small, chain)
            count += removed
            if not removed:
                reason = chain if isinstance(chain, str) else "zero padding, or its last unit"
                kept.append(f"{node.target} ({reason})")
    if kept and not count:
        raise ModelError(
            f"no unit without weights can be removed, of the layers {shorten(kept)}; expected one "
            "whose outputs pass only through BatchNorm, Dropout, activations, pooling and flatten "
            "to another Linear or convolution"
        )
    _compare(copy_module(module).eval(), small, inputs)
    for part, original in zip(small.modules(), module.modules(), strict=True):
        part.training = original.training
    return small


def _trace(module: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(module)
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be traced by torch.fx ({error}), expected a forward "
            "without branches that depend on the data; keep the module with its zeros"
        ) from error


def _layer_of(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _find_zeros(layer: Any) -> Tensor:
    """Return which units have no weight other than zero."""
    return ~layer.weight.flatten(1).any(1)


def _find_chain(module: nn.Module, graph: fx.Graph, node: fx.Node) -> Chain | str:
    """Return the chain that starts at a layer, or why there is none."""
    first, between, is_flattened = _layer_of(module, node), [], False
    is_convolution = isinstance(first, _CONVOLUTIONS)
    while True:
        if problem := _find_problem(module, graph, node):
            return problem
        if len(node.users) != 1:
            return "its outputs are used more than once"
        (node,) = node.users
        if node.op == "output":
            return "its outputs are the module's"
        layer = _layer_of(module, node)
        if type(layer) in _LAYERS:
            break
        if _is_flatten(layer, node):
            is_flattened = True
        elif not _keeps_units_apart(layer, node) or node.args[1:] and node.op == "call_module":
            return f"its outputs go to {node.target}"
        between.append(node)
    if problem := _find_problem(module, graph, node):
        return problem
    is_linear = type(layer) is nn.Linear
    if is_linear == is_convolution and not is_flattened:
        return f"its outputs go to {node.target}, along another axis"
    assert first is not None and layer is not None
    return Chain(first, between, layer, is_flattened)


def _find_problem(module: nn.Module, graph: fx.Graph, node: fx.Node) -> str:
    """Return why the module of a node cannot change; empty if it can."""
    layer = _layer_of(module, node)
    if layer is None or not any(True for _ in layer.parameters()):
        return ""
    calls = Counter(n.target for n in graph.nodes if n.op == "call_module")
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    owners = Counter(p for _, p in _own_parameters(module))
    if calls[node.target] > 1 or node.target in read:
        return f"{node.target} is used more than once"
    if any(owners[p] > 1 for p in layer.parameters()):
        return f"{node.target} shares weights with another layer"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return f"{node.target} has hooks"
    if getattr(layer, "groups", 1) != 1:
        return f"{node.target} has groups"
    return ""


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for part in module.modules():
        yield from part.named_parameters(recurse=False, remove_duplicate=False)


def _is_flatten(layer: nn.Module | None, node: fx.Node) -> bool:
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if node.target is not torch.flatten and (node.op, node.target) != ("call_method", "flatten"):
        return False
    return (node.args[1:], dict(node.kwargs)) in [((1,), {}), ((1, -1), {}), ((), {"start_dim": 1})]


def _keeps_units_apart(layer: nn.Module | None, node: fx.Node) -> bool:
    if node.op == "call_module":
        known = (*_ELEMENTWISE, *_MAX_POOLS, *_MEAN_POOLS, *_NORMS)
        is_fixed = not isinstance(layer, _BatchNorm) or layer.running_mean is not None
        return is_fixed and (type(layer) in known or isinstance(layer, _DropoutNd))
    of_node = [x for x in tree_flatten((node.args, node.kwargs))[0] if isinstance(x, fx.Node)]
    is_known = node.target in (_FUNCTIONS if node.op == "call_function" else _METHODS)
    return len(of_node) == 1 and is_known


def _shrink(module: nn.Module, chain: Chain) -> int:
    """Remove the units of a chain's first layer that can be; return their number."""
    first: Any = chain.first
    second: Any = chain.second
    units = len(first.weight)
    inputs = second.weight.shape[1]
    if inputs % units or (isinstance(first, nn.Linear) and inputs != units):
        return 0
    constant, has_borders = _propagate(module, chain)
    removable = _find_zeros(first)
    pads = isinstance(second, _CONVOLUTIONS) and second.padding_mode == "zeros"
    if has_borders or (pads and not _is_unpadded(second.padding)):
        removable &= constant == 0.0
    if bool(removable.all()):
        removable[0] = False  # no layer without a unit
    keep = ~removable
    _slice_units(first, keep)
    for node in chain.between:
        layer = _layer_of(module, node)
        if isinstance(layer, _BatchNorm):
            _slice_units(layer, keep)
    columns = keep.repeat_interleave(inputs // units)
    weight = second.weight.flatten(2).sum(2) if second.weight.dim() > 2 else second.weight
    shift = weight[:, ~columns] @ constant.repeat_interleave(inputs // units)[~columns]
    if bool(shift.any()):
        bias = shift if second.bias is None else second.bias + shift
        second.bias = nn.Parameter(bias, requires_grad=second.weight.requires_grad)
    _replace(second, "weight", second.weight[:, columns])
    _set_sizes(second)
    return int(removable.sum())


def _propagate(module: nn.Module, chain: Chain) -> tuple[Tensor, bool]:
    """
    Return the constants that units without weights give to the next layer, and whether they are
    others at the borders.
    """
    first: Any = chain.first
    zeros = first.weight.new_zeros(len(first.weight))
    value = (zeros if first.bias is None else first.bias.detach().clone())[None]
    has_borders = False
    for node in chain.between:
        layer = _layer_of(module, node)
        if isinstance(layer, _BatchNorm):
            parts = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
            value = F.batch_norm(value, *parts, False, 0.0, layer.eps)
        elif isinstance(layer, _ELEMENTWISE):
            value = layer(value)
        elif isinstance(layer, _MEAN_POOLS):
            has_borders |= not _is_unpadded(layer.padding) or bool(getattr(layer, "ceil_mode", 0))
        elif layer is None and not _is_flatten(layer, node):
            value = _apply(node, value)
    return value[0], has_borders


def _apply(node: fx.Node, value: Tensor) -> Tensor:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda _: value)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return function(*args, **kwargs)


def _is_unpadded(padding: Any) -> bool:
    return padding == "valid" or not any(tree_flatten(padding)[0])


def _slice_units(layer: Any, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            _replace(layer, name, getattr(layer, name)[keep])
    _set_sizes(layer)


def _replace(layer: Any, name: str, value: Tensor) -> None:
    old = getattr(layer, name)
    value = value.contiguous()
    is_parameter = isinstance(old, nn.Parameter)
    setattr(layer, name, nn.Parameter(value, old.requires_grad) if is_parameter else value)


def _set_sizes(layer: Any) -> None:
    if isinstance(layer, _BatchNorm):
        layer.num_features = len(layer.running_mean)  # type: ignore[arg-type]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]


def _compare(module: nn.Module, small: nn.Module, inputs: tuple[Any, ...]) -> None:
    """
    Compare the outputs of two modules.

    :raises ModelError: if they are not the same.
    """
    with torch.no_grad():
        expected = tree_flatten(module(*inputs))[0]
        try:
            found = tree_flatten(small(*inputs))[0]
            same = all(
                torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
                for a, b in zip(found, expected, strict=True)
                if isinstance(b, Tensor) and b.numel()
            )
        except RuntimeError:  # a size is written in forward
            same = False
    if not same:
        raise ModelError(
            f"{type(module).__name__} without its units has other outputs, expected the same: its "
            "forward depends on the sizes of its layers; keep the module with its zeros"
        )
