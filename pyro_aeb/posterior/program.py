# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Functions that run the model, as compiled code: model, autograd, :func:`torch.vmap` over chains and
what follows run in Python only while they are traced.

At the first batch of a kind :func:`torch.fx.experimental.proxy_tensor.make_fx` records the
operations of a step, and torch's compiler compiles them; without a C++ compiler they run one by
one, without the model's Python. A *kind* of batch is what the code depends on: shapes, dtypes,
devices, and arguments that are no tensors. At the second batch of a kind, and ever more rarely
after it, the operations are recorded again and must be the same; otherwise the model's Python
changes from step to step. All steps use the numbers of the compiled code, so that a resumed run
makes the steps of an uninterrupted one.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import count, repeat
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.errors import CompileWarning, first_line
from pyro_aeb.model.gradient_watch import LIBRARIES
from pyro_aeb.model.side_effects import Buffers, start_autograd
from pyro_aeb.posterior.likelihood import Evaluation, Likelihood

KINDS = 8
"""The most kinds of batches that are compiled; each takes seconds."""

AGAIN = 16
"""The operations are recorded again at batches 2, 32, 512, ... of a kind."""

SMALL = 2**18
"""
Numbers in a step's inputs up to which its code runs in one thread: on a busy machine a second one
may keep it waiting for longer than the step takes.
"""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class Program:
    """
    A function of a chain's numbers and a batch, compiled. Where it cannot be, a
    :class:`~pyro_aeb.errors.CompileWarning` says why, and its caller runs it as written.

    Nothing is changed in place: all that moves, the model's buffers included, goes in and comes
    out.

    :param function: of ``moving``, a tree of tuples, dicts, tensors and None, always of the same
        tensors; of the batch; and of plain values that the code depends on. It returns such a tree.
    :param Buffers buffers: those that the model changes.
    :param partial: the plates whose indices change from step to step.
    :param report: called with what could not be compiled, by default as a warning.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        buffers: Buffers,
        partial: Collection[str],
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._function = function
        self._report = report or _warn
        self._buffers = buffers
        self._partial = sorted(partial)
        self._codes: dict[Hashable, _Code] = {}
        self._disabled = False
        self._explanation: str | None = None
        self._collect: Callable[[Any], list[Tensor]] | None = None
        self._last: tuple[Arguments, Hashable, list[Tensor]] | None = None

    def __call__(self, moving: Any, batch: Batch, *static: Hashable) -> Any:
        """Return the function's result, equal up to rounding; None where it is not compiled."""
        if self._disabled:
            return None
        if self._collect is None:
            self._collect = _write_collector(moving)
        inputs = self._collect(moving)
        own_kind, arguments = self._take_apart(batch.arguments)
        kind = own_kind, batch.per_chain, static
        inputs += self._buffers.values()
        inputs += [batch.indices[name] for name in self._partial]
        inputs += arguments
        code = self._codes.get(kind)
        if code is not None and code.next():
            return self._finish(code(inputs))
        if code is None and len(self._codes) == KINDS:
            return self._disable(
                f"batches are of more than {KINDS} kinds (shapes, dtypes, devices, arguments that "
                "are no tensors), and each would be compiled anew",
                "Make batches of few sizes (drop_last=True, padding) that hold tensors",
            )
        return self._first_steps(kind, code, inputs, moving, batch, static)

    def ready(self, batch: Batch, *static: Hashable) -> int:
        """
        Return how many runs on a batch :meth:`repeat` can make now; 0 for a large model, whose
        steps take longer than what is saved.
        """
        kind = self._take_apart(batch.arguments)[0], batch.per_chain, static
        code = self._codes.get(kind)
        return 0 if code is None or not code.is_small else code.left()

    @torch.no_grad()
    def repeat(
        self,
        moving: Any,
        batch: Batch,
        given: Iterable[tuple[Sequence[Tensor], Mapping[str, Tensor]]],
        *static: Hashable,
    ) -> tuple[Any, list[Sequence[Tensor]]]:
        """
        Run the function on what it has returned, at most as often as :meth:`ready` says. This is
        the code of single calls on the same numbers, with less Python around it.

        :param moving: for the first run. The first tensors of a result take the place of the first
            ones of ``moving``; the last ones are given anew.
        :param given: for every run the last tensors of ``moving``, and the indices of the batch.
        :returns: the last result; and of every result the tensors that the next run does not take.
        """
        assert self._collect is not None
        own_kind, arguments = self._take_apart(batch.arguments)
        code = self._codes[own_kind, batch.per_chain, static]
        tensors = self._collect(moving)
        buffers: Sequence[Tensor] = self._buffers.values()
        others: list[Sequence[Tensor]] = []
        outputs: Sequence[Tensor] = ()
        for numbers, indices in given:
            kept = len(tensors) - len(numbers)
            rows = [indices[name] for name in self._partial]
            outputs = code.run([*tensors[:kept], *numbers, *buffers, *rows, *arguments])
            end = len(outputs) - len(buffers)
            tensors[:kept], buffers = outputs[:kept], outputs[end:]
            others.append(outputs[kept:end])
        code.batches += len(others)
        return self._finish(code.make_outputs(outputs)), others

    def _take_apart(self, arguments: Arguments) -> tuple[Hashable, list[Tensor]]:
        """Return kind and tensors of the model's arguments, read anew where they may change."""
        if self._last is not None and self._last[0] is arguments:
            return self._last[1:]
        tensors: list[Tensor] = []
        kind = _take_apart(arguments, tensors)
        values = (*arguments.args, *arguments.kwargs.values())
        if all(isinstance(value, (Tensor, *_PLAIN)) for value in values):
            self._last = arguments, kind, tensors
        return kind, tensors

    def _first_steps(
        self,
        kind: Hashable,
        code: _Code | None,
        inputs: list[Tensor],
        moving: Any,
        batch: Batch,
        static: tuple[Hashable, ...],
    ) -> Any:
        """Compile at the first step of a kind, and check the operations at some of the others."""
        device = inputs[0].device
        before = _random_state(device)
        try:
            trace = self._trace(inputs, moving, batch, static)
        except Exception as error:  # of whatever kind; one of the model's own comes again
            _set_random_state(before, device)
            return self._disable(
                f"it cannot be traced ({first_line(error)}{_find_place(error)})",
                "Write model and transition without .item(), float(), branches on the values of "
                "tensors, and shapes that depend on values; in a transition the step's numbers are "
                "tensors, of which math.sqrt(x) is x ** 0.5",
            )
        # The function has run once, as in any step: the outputs of the trace are those of the step.
        if fault := _find_fault(trace.graph) or self._find_change(code, trace):
            self._disable(*fault)
            return self._finish(trace.outputs)
        after = _random_state(device)
        if code is None:
            code = self._codes[kind] = _Code(trace, inputs, (moving, batch), self._report)
        _set_random_state(before, device)
        try:
            return self._finish(code(inputs))
        except Exception as error:  # of whatever kind the compiled code's failures are
            _set_random_state(after, device)
            self._disable(
                f"the compiled code has failed ({first_line(error)})",
                "A step must run the same operations on batches of the same kind",
            )
            return self._finish(trace.outputs)

    def _find_change(self, code: _Code | None, trace: _Trace) -> tuple[str, str] | None:
        """Say that a trace is not of the operations that were compiled, and the cure."""
        if code is None or code.is_of(trace):
            return None
        steps = f". The {code.batches - 1} steps before may be those of the model at first"
        return (
            "the model has not run the same operations on the same constants in two steps: "
            "something of Python's changes as it runs (a counter, a random number of Python or "
            "NumPy, an attribute that is set anew)" + (steps if code.batches > 2 else ""),
            "Hold what changes in a tensor, as a buffer of a module",
        )

    def _trace(
        self, inputs: Sequence[Tensor], moving: Any, batch: Batch, static: tuple[Hashable, ...]
    ) -> _Trace:
        """Record one run of the function; the chain's buffers are unchanged."""
        results: list[_Outputs] = []
        count = len(self._buffers.values())
        whole = {name: i for name, i in batch.indices.items() if name not in self._partial}

        def step(*flat: Tensor) -> list[Tensor]:
            tensors = iter(flat)
            own = _put_together(moving, tensors)
            buffers = [next(tensors).clone() for _ in range(count)]
            indices = {name: torch.arange(len(i), device=i.device) for name, i in whole.items()}
            indices |= {name: next(tensors) for name in self._partial}
            own_batch = Batch(_put_together(batch.arguments, tensors), indices, batch.per_chain)
            found: list[Any] = []
            after = self._buffers.run_on(
                buffers, lambda: found.append(self._function(own, own_batch, *static))
            )
            results.append(_Outputs(found[0], after))
            outputs: list[Tensor] = []
            _take_apart(results[0], outputs)
            return outputs

        start_autograd()
        with pyro.validation_enabled(False):  # checks of values are branches on them
            graph = make_fx(step)(*inputs)
        _take_whole_plates(graph, inputs)
        constants = _constants_as_inputs(graph)
        return _Trace(graph, constants, results[0])

    def _finish(self, outputs: _Outputs) -> Any:
        """Store the buffers of a step, and return the function's result."""
        if outputs.buffers:
            self._buffers.load(outputs.buffers)
        return outputs.result

    def warn(self) -> None:
        """Say why the function was not compiled, once it has run as written without an error."""
        if self._explanation is not None:
            self._report(self._explanation)
            self._explanation = None

    def _disable(self, reason: str, cure: str) -> None:
        """Run as written from now on."""
        self._disabled = True
        self._codes.clear()
        self._explanation = (
            f"the step is not compiled and runs as it is written: {reason}. {cure}; or ask for no "
            "compiling with compile=False"
        )


class CompiledLikelihood:
    """
    A likelihood whose gradient is compiled, for a step that is not compiled as a whole.

    :param partial: the plates whose indices change from step to step.
    :param report: see :class:`Program`.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        buffers: Buffers,
        partial: Collection[str],
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._likelihood = likelihood
        self._program = Program(self._evaluate, buffers, partial, report)

    def evaluate(self, position: Tensor, latents: Mapping[str, Tensor], batch: Batch) -> Evaluation:
        """See :meth:`pyro_aeb.posterior.likelihood.Likelihood.evaluate`; equal up to rounding."""
        evaluation: Evaluation | None = self._program((position, latents), batch)
        if evaluation is None:
            evaluation = self._likelihood.evaluate(position, latents, batch)
        self._program.warn()
        return evaluation

    def _evaluate(self, moving: tuple[Tensor, Mapping[str, Tensor]], batch: Batch) -> Evaluation:
        return self._likelihood.evaluate(*moving, batch)


class _Outputs(NamedTuple):
    """The outputs of a run of a function that runs the model."""

    result: Any
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


class _Code:
    """The compiled code for one kind of batches."""

    def __init__(
        self,
        trace: _Trace,
        inputs: Sequence[Tensor],
        arguments: Any,
        report: Callable[[str], None],
    ) -> None:
        self.batches = 1
        self._check_at = 2
        self._operations = trace.graph.code
        self._constants = trace.constants
        self._kind = _take_apart(trace.outputs, [])
        self.is_small = sum(map(Tensor.numel, inputs)) <= SMALL
        self.make_outputs = _write_constructor(trace.outputs)
        # Kept alive: the kind of a batch has their ids.
        self._arguments = _put_together(arguments, repeat(torch.empty(0)))
        self._run: Callable[..., Sequence[Tensor]] = trace.graph
        try:
            with torch.no_grad():
                self._run = compile_graph(trace.graph, [*inputs, *trace.constants])
        except Exception as error:  # of whatever kind the compiler's failures are
            report(
                f"the compiler has failed ({first_line(error)}), so a step runs its operations one "
                "by one, without the model's Python. It needs a C++ compiler (g++ or clang) on "
                "the path, on a GPU Triton"
            )

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> _Outputs:
        outputs: _Outputs = self.make_outputs(self.run(inputs))
        return outputs

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs as a list of tensors."""
        return self._run(*inputs, *self._constants)

    def left(self) -> int:
        """Return the number of batches until the operations are recorded again."""
        return self._check_at - 1 - self.batches

    def next(self) -> bool:
        """Count a batch; False where the operations are to be recorded again."""
        self.batches += 1
        if self.batches < self._check_at:
            return True
        self._check_at *= AGAIN
        return False

    def is_of(self, trace: _Trace) -> bool:
        """Return whether a trace has the same operations on the same constants."""
        return (
            self._operations == trace.graph.code
            and self._kind == _take_apart(trace.outputs, [])
            and len(self._constants) == len(trace.constants)
            and all(map(_equal, self._constants, trace.constants))
        )


def _warn(explanation: str) -> None:
    warnings.warn(explanation, CompileWarning, stacklevel=8)


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph; it draws the same random numbers as the model as written."""
    from torch._inductor import compile  # takes seconds to import

    options: dict[str, Any] = {"fallback_random": True, "size_asserts": False}
    if sum(value.numel() for value in inputs) <= SMALL:
        options["cpp.threads"] = 1
    return compile(graph, [*inputs], options=options)


def _take_whole_plates(graph: GraphModule, inputs: Sequence[Tensor]) -> None:
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
    for name, _ in [*graph.named_buffers(), *graph.named_parameters()]:
        delattr(graph, name)  # or they would be inputs of the code once more
    graph.recompile()
    return constants


def _find_fault(graph: GraphModule) -> tuple[str, str] | None:
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


def _write_collector(example: Any) -> Callable[[Any], list[Tensor]]:
    """Write the function that lists the tensors of a tree as :func:`_take_apart` does, but fast."""

    def places(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, Tensor):
            yield path
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                yield from places(item, f"{path}[{i}]")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from places(item, f"{path}[{name!r}]")

    collector: Callable[[Any], list[Tensor]] = eval(
        f"lambda v: [{', '.join(places(example, 'v'))}]"
    )
    return collector


def _write_constructor(example: Any) -> Callable[[Sequence[Tensor]], Any]:
    """Write the function that makes a tree of a list of tensors as :func:`_put_together` does."""
    names: dict[str, Any] = {}
    numbers = count()

    def name_of(value: Any) -> str:
        names[name := f"c{len(names)}"] = value
        return name

    def write(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"t[{next(numbers)}]"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{n!r}: {write(item)}' for n, item in value.items())}}}"
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            items = ", ".join(map(write, value))
            if hasattr(value, "_fields"):
                return f"{name_of(type(value))}({items})"
            return f"[{items}]" if isinstance(value, list) else f"({items},)"
        return name_of(value)

    constructor: Callable[[Sequence[Tensor]], Any] = eval(f"lambda t: {write(example)}", names)
    return constructor


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


def _find_place(error: BaseException) -> str:
    """Return the innermost line of the user's code that an error, or what caused it, came from."""
    frames: list[traceback.FrameSummary] = []
    cause: BaseException | None = error
    while cause is not None:
        frames += traceback.extract_tb(cause.__traceback__)
        cause = cause.__cause__
    for frame in reversed(frames):
        if frame.line and not frame.filename.startswith(LIBRARIES):
            return f"; {os.path.basename(frame.filename)}, line {frame.lineno}: {frame.line}"
    return ""
