# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Changes and checks of the recorded operations of a step, before they are compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

METHODS = frozenset(
    "abs add addcdiv addcmul clamp div dot eq exp expand expm1 ge gt le lerp log log1p logit lt "
    "mean mm mul mv ne neg pow reciprocal relu rsqrt select sigmoid sign sqrt square squeeze sub "
    "sum t tanh transpose unbind unsqueeze view".split()
)
"""Operators that are methods of tensors with the same arguments; in place with an underscore."""

POOLING = (
    torch.ops.aten.max_pool2d_with_indices.default,
    torch.ops.aten.max_pool2d_with_indices_backward.default,
)

_OPERATORS = torch.library.Library("pyro_aeb", "DEF")
"""Torch's pooling by names that the compiler does not know, so that it calls them."""


def _define(operator: OpOverload) -> None:
    schema = str(operator._schema).removeprefix("aten::")
    _OPERATORS.define(schema, tags=getattr(torch.Tag, "flexible_layout", ()))
    for key in ("CPU", "Meta"):
        _OPERATORS.impl(_name(operator), operator, key)


def _name(operator: OpOverload) -> str:
    return operator._schema.name.removeprefix("aten::")


for _operator in POOLING:
    _define(_operator)


def record_operations(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """
    Run a function on inputs, and return the operations that it calls. All shapes are noted in one
    mode for fake tensors; without it :func:`make_fx` makes one for each operation, which takes as
    long as all else.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode

    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*inputs)


def take_whole_plates(graph: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Replace an input's rows in order, all of them, by the input."""
    placeholders = graph.graph.find_nodes(op="placeholder")
    sizes = {node: value.shape[:1] for node, value in zip(placeholders, inputs, strict=True)}
    index, arange = torch.ops.aten.index.Tensor, torch.ops.aten.arange.default
    for node in graph.graph.find_nodes(op="call_function", target=index):
        source, rows = node.args
        if source in sizes and len(rows) == 1 and rows[0].target == arange:
            if rows[0].args == tuple(sizes[source]):
                node.replace_all_uses_with(source)
                graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def constants_as_inputs(graph: GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into inputs, and return them."""
    constants: list[Tensor] = []
    *_, last = graph.graph.find_nodes(op="placeholder")
    for node in graph.graph.find_nodes(op="get_attr"):
        constants.append(getattr(graph, node.target))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"constant_{len(constants)}")
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    for name, _ in [*graph.named_buffers(), *graph.named_parameters()]:
        delattr(graph, name)  # or they would be inputs of the code once more
    graph.recompile()
    return constants


def copy_passed_outputs(graph: GraphModule) -> None:
    """Let every output be a tensor of its own: copy those that are an input, or another output."""
    (output,) = graph.graph.find_nodes(op="output")
    seen, outputs = set(graph.graph.find_nodes(op="placeholder")), []
    for node in output.args[0]:
        if node in seen:
            with graph.graph.inserting_before(output):
                node = graph.graph.call_function(torch.ops.aten.clone.default, (node,))
        seen.add(node)
        outputs.append(node)
    output.args = (outputs,)
    graph.recompile()


def call_pooling(graph: GraphModule) -> None:
    """Let compiled code call torch's max pooling, which is faster than what the compiler writes."""
    for operator in POOLING:
        for node in graph.graph.find_nodes(op="call_function", target=operator):
            node.target = getattr(torch.ops.pyro_aeb, _name(operator)).default
    graph.recompile()


def call_methods(graph: GraphModule) -> None:
    """
    Call methods of tensors where a graph calls torch's operators, which takes Python half as long;
    and leave out operations that return what they are given. The numbers are the same.
    """
    aten = torch.ops.aten
    for target in (aten.alias.default, aten.view.default, aten.expand.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            source = node.args[0]
            before, after = source.meta.get("val"), node.meta.get("val")
            if before is not None and after is not None and before.shape == after.shape:
                node.replace_all_uses_with(source)
                graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if node.op == "call_function" and name.removesuffix("_") in METHODS:
            node.op, node.target = "call_method", name
    graph.recompile()


def find_fault(graph: GraphModule) -> tuple[str, str] | None:
    """Say what in a graph cannot be compiled, and the cure."""
    if operation := _find_dynamic_shape(graph):
        return (
            f"the shape of a tensor depends on the values of another ({operation})",
            "Write the model with tensors of one shape, by torch.where or poutine.mask",
        )
    if _changes_inputs(graph):
        return (
            "the model changes a tensor in place that is not one of its modules' buffers",
            "Change a copy of data, and let a tensor that is to be kept be a buffer of the module "
            "that changes it, by register_buffer",
        )
    return None


def _find_dynamic_shape(graph: GraphModule) -> str | None:
    """Return an operation of a graph whose output has a shape that depends on values."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.index.Tensor):
        if any(i is not None and i.meta["val"].dtype == torch.bool for i in node.args[1]):
            return "an index of bools"
    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape in tags and node.target != torch.ops.aten.index.Tensor:
            return str(node.target)
    return None


def _changes_inputs(graph: GraphModule) -> bool:
    """Return whether a graph writes to its inputs, or to views of them."""
    views = set(graph.graph.find_nodes(op="placeholder"))
    for node in graph.graph.nodes:
        if views.isdisjoint(node.all_input_nodes):
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None:  # an item of several views
            views.add(node)
            continue
        arguments = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        for argument in schema.arguments:
            value = arguments.get(argument.name, node.kwargs.get(argument.name))
            aliased = value if isinstance(value, (list, tuple)) else [value]
            if argument.alias_info is None or views.isdisjoint(aliased):
                continue
            if argument.alias_info.is_write:
                return True
            views.add(node)
    return False
