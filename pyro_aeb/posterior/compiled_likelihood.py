# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The likelihood's gradient as compiled code: the model, autograd and, for several chains,
:func:`torch.vmap` run in Python only while it is traced.

At the first batch of a kind :func:`torch.fx.experimental.proxy_tensor.make_fx` records the
operations of a step, and torch's compiler compiles them. A *kind* of batch is what the code depends
on: shapes, dtypes, devices, and arguments that are no tensors. At the second batch of a kind the
operations are recorded again and must be the same; otherwise the model's Python changes from step
to step. Both steps use the numbers of the compiled code, so that a resumed run makes the steps of
an uninterrupted one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_aeb.data.arguments import Batch
from pyro_aeb.errors import CompileWarning, first_line
from pyro_aeb.model.side_effects import Buffers, start_autograd
from pyro_aeb.posterior.likelihood import Evaluation, Likelihood

KINDS = 8
"""The most kinds of batches that are compiled; each takes seconds."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class CompiledLikelihood:
    """
    A likelihood whose gradient is compiled. Where it cannot be compiled, a
    :class:`~pyro_aeb.errors.CompileWarning` says why, and the likelihood runs as written.
    """

    def __init__(self, likelihood: Likelihood, buffers: Buffers) -> None:
        self._likelihood = likelihood
        self._buffers = buffers
        self._programs: dict[Hashable, _Program] = {}
        self._disabled = False

    def evaluate(self, position: Tensor, latents: Mapping[str, Tensor], batch: Batch) -> Evaluation:
        """See :meth:`pyro_aeb.posterior.likelihood.Likelihood.evaluate`; equal up to rounding."""
        if self._disabled:
            return self._likelihood.evaluate(position, latents, batch)
        tensors: list[Tensor] = []
        kind = _take_apart((latents, batch), tensors)
        inputs = [position, *self._buffers.values(), *tensors]
        program = self._programs.get(kind)
        if program is not None and program.checked:
            return self._finish(program(inputs))
        if program is None and len(self._programs) == KINDS:
            self._disable(
                f"batches are of more than {KINDS} kinds (shapes, dtypes, devices, arguments that "
                "are no tensors), and each would be compiled anew",
                "Make batches of few sizes (drop_last=True, padding) that hold tensors",
            )
            return self._likelihood.evaluate(position, latents, batch)
        return self._first_steps(kind, program, inputs, latents, batch)

    def _first_steps(
        self,
        kind: Hashable,
        program: _Program | None,
        inputs: list[Tensor],
        latents: Mapping[str, Tensor],
        batch: Batch,
    ) -> Evaluation:
        """Compile at the first step of a kind, and check the operations at the second."""
        position, device = inputs[0], inputs[0].device
        before = _random_state(device)
        try:
            trace = _trace(self._likelihood, self._buffers, inputs, latents, batch)
        except Exception as error:  # of whatever kind; one of the model's own comes again
            _set_random_state(before, device)
            likelihood = self._likelihood.evaluate(position, latents, batch)
            self._disable(
                f"the model cannot be traced ({first_line(error)})",
                "Write it without .item(), branches on the values of tensors, and shapes that "
                "depend on values",
            )
            return likelihood
        # The model has run once, as in any step: the outputs of the trace are those of the step.
        if _changes_inputs(trace.graph):
            self._disable(
                "the model changes a tensor in place that is not one of its modules' buffers",
                "Change a copy of data, and let a tensor that is to be kept be a buffer of the "
                "module that changes it, by register_buffer",
            )
            return self._finish(trace.outputs)
        if program is not None and not program.is_of(trace):
            self._disable(
                "the model has not run the same operations on the same constants in two steps: "
                "something of Python's changes as it runs (a counter, a random number of Python "
                "or NumPy, an attribute that is set anew)",
                "Hold what changes in a tensor, as a buffer of a module",
            )
            return self._finish(trace.outputs)
        after = _random_state(device)
        _set_random_state(before, device)
        try:
            if program is None:
                program = self._programs[kind] = _Program(trace, inputs, (latents, batch))
            else:
                program.checked = True
            return self._finish(program(inputs))
        except Exception as error:  # of whatever kind the compiler's failures are
            _set_random_state(after, device)
            self._disable(
                f"the compiler has failed ({first_line(error)})",
                "It needs a C++ compiler (g++ or clang) on the path, on a GPU Triton, and a model "
                "without shapes that depend on values",
            )
            return self._finish(trace.outputs)

    def _finish(self, outputs: _Outputs) -> Evaluation:
        """Store the buffers of a step, and return its likelihood."""
        if outputs.buffers:
            self._buffers.load(outputs.buffers)
        return outputs.likelihood

    def _disable(self, reason: str, cure: str) -> None:
        self._disabled = True
        self._programs.clear()
        warnings.warn(
            f"the likelihood's gradient is not compiled and runs as it is written: {reason}. "
            f"{cure}; or ask with compile='update' for no more than what comes after it",
            CompileWarning,
            stacklevel=5,
        )


class _Outputs(NamedTuple):
    """The outputs of a step's run of the model."""

    likelihood: Evaluation
    buffers: list[Tensor]


class _Trace(NamedTuple):
    """
    The recorded operations of a step.

    :param GraphModule graph: a function of the inputs and then of the constants.
    :param list constants: tensors that the model takes from elsewhere, such as weights that are
        not sampled. They are read at every step.
    """

    graph: GraphModule
    constants: list[Tensor]
    outputs: _Outputs


class _Program:
    """The compiled code for one kind of batches."""

    def __init__(self, trace: _Trace, inputs: Sequence[Tensor], arguments: Any) -> None:
        self.checked = False
        self._operations = trace.graph.code
        self._constants = trace.constants
        self._kind = _take_apart(trace.outputs, [])
        self._outputs = _put_together(trace.outputs, repeat(torch.empty(0)))
        # Kept alive: the kind of a batch has their ids.
        self._arguments = _put_together(arguments, repeat(torch.empty(0)))
        with torch.no_grad():
            self._run = compile_graph(trace.graph, [*inputs, *trace.constants])

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> _Outputs:
        return _put_together(self._outputs, iter(self._run(*inputs, *self._constants)))

    def is_of(self, trace: _Trace) -> bool:
        """Return whether a trace has the same operations on the same constants."""
        return (
            self._operations == trace.graph.code
            and self._kind == _take_apart(trace.outputs, [])
            and len(self._constants) == len(trace.constants)
            and all(map(_equal, self._constants, trace.constants))
        )


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph; it draws the same random numbers as the model as written."""
    from torch._inductor import compile  # takes seconds to import

    return compile(graph, [*inputs], options={"fallback_random": True})


def _trace(
    likelihood: Likelihood,
    buffers: Buffers,
    inputs: Sequence[Tensor],
    latents: Mapping[str, Tensor],
    batch: Batch,
) -> _Trace:
    """Record one run of the model; the chain's buffers are unchanged."""
    results: list[_Outputs] = []
    count = len(buffers.values())

    def step(position: Tensor, *tensors: Tensor) -> list[Tensor]:
        own_latents, own_batch = _put_together((latents, batch), iter(tensors[count:]))
        evaluations: list[Evaluation] = []
        after = buffers.run_on(
            [buffer.clone() for buffer in tensors[:count]],
            lambda: evaluations.append(likelihood.evaluate(position, own_latents, own_batch)),
        )
        results.append(_Outputs(evaluations[0], after))
        outputs: list[Tensor] = []
        _take_apart(results[0], outputs)
        return outputs

    start_autograd()
    with pyro.validation_enabled(False):  # checks of values are branches on them
        graph = make_fx(step)(*inputs)
    constants = _constants_as_inputs(graph)
    return _Trace(graph, constants, results[0])


def _constants_as_inputs(graph: GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into inputs, and return them."""
    constants: list[Tensor] = []
    *_, last = graph.graph.find_nodes(op="placeholder")
    for node in graph.graph.find_nodes(op="get_attr"):
        constants.append(getattr(graph, node.target))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"constant_{len(constants)}")
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.recompile()
    return constants


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


def _take_apart(value: Any, tensors: list[Tensor]) -> Hashable:
    """
    Return a hashable key of what compiled code depends on: dtype, device, shape and stride of
    tensors, the value of plain objects, the identity of others. Tensors in tuples, lists and
    mappings are appended to ``tensors``.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.dtype, value.device, value.shape, value.stride()
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple([(n, _take_apart(item, tensors)) for n, item in value.items()])
    if isinstance(value, (tuple, list)):
        return type(value), tuple([_take_apart(item, tensors) for item in value])
    return type(value), id(value)


def _put_together(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the value with other tensors in place of those that :func:`_take_apart` finds."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {name: _put_together(item, tensors) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_put_together(item, tensors) for item in value])
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)([_put_together(item, tensors) for item in value])
    return value


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    return _take_apart(one, []) == _take_apart(other, []) and torch.equal(one, other)


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's global generators, on the CPU and on a device."""
    state = [torch.get_rng_state()]
    if device.type != "cpu":
        state.append(torch.get_device_module(device).get_rng_state(device))
    return state


def _set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1], device)
