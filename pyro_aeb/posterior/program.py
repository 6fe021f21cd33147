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
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.errors import CompileWarning, first_line
from pyro_aeb.model.gradient_watch import LIBRARIES
from pyro_aeb.model.side_effects import Buffers, start_autograd
from pyro_aeb.posterior.compiled_code import Code, Outputs, Trace
from pyro_aeb.posterior.graphs import (
    constants_as_inputs,
    find_fault,
    record_operations,
    take_whole_plates,
)
from pyro_aeb.posterior.likelihood import Evaluation, Likelihood
from pyro_aeb.posterior.trees import PLAIN, put_together, take_apart, write_collector

KINDS = 8
"""The most kinds of batches that are compiled; each takes seconds."""


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
        self._codes: dict[Hashable, Code] = {}
        self._disabled = False
        self._explanation: str | None = None
        self._collect: Callable[[Any], list[Tensor]] | None = None
        self._last: tuple[Arguments, Hashable, list[Tensor]] | None = None

    def __call__(self, moving: Any, batch: Batch, *static: Hashable) -> Any:
        """Return the function's result, equal up to rounding; None where it is not compiled."""
        if self._disabled:
            return None
        if self._collect is None:
            self._collect = write_collector(moving)
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
        given: Sequence[Tensor],
        rows: Mapping[str, Sequence[Tensor]],
        draw: Callable[[], None],
        *static: Hashable,
    ) -> tuple[Any, list[Tensor]]:
        """
        Run the function on what it has returned, as often as there are tensors in ``given``, which
        is at most what :meth:`ready` says.

        :param moving: for the first run. The first tensors of a result take the place of the first
            ones of ``moving``; the last ones are given anew.
        :param given: the last tensors of ``moving``, stacked over runs.
        :param rows: of a plate the indices of every batch.
        :param draw: called before every run; writes what is given in it.
        :returns: the last result; and, stacked over runs, the tensors of a result that the next run
            does not take.
        """
        assert self._collect is not None
        own_kind, arguments = self._take_apart(batch.arguments)
        code = self._codes[own_kind, batch.per_chain, static]
        tensors, buffers = self._collect(moving), self._buffers.values()
        kept, end = len(tensors) - len(given), len(tensors) + len(buffers)
        columns = [rows[name] for name in self._partial]
        ends = range(code.outputs - len(buffers), code.outputs)
        moves = {i: i for i in range(kept)} | dict(zip(range(len(tensors), end), ends, strict=True))
        places = [*range(kept, len(tensors)), *range(end, end + len(columns))]
        # The first indices are put into their places with those of every run.
        inputs = [*tensors, *buffers, *tensors[: len(columns)], *arguments]
        outputs, others = code.repeat(inputs, moves, places, [*given, *columns], draw)
        return self._finish(code.make_outputs(outputs)), others

    def _take_apart(self, arguments: Arguments) -> tuple[Hashable, list[Tensor]]:
        """Return kind and tensors of the model's arguments, read anew where they may change."""
        if self._last is not None and self._last[0] is arguments:
            return self._last[1:]
        tensors: list[Tensor] = []
        kind = take_apart(arguments, tensors)
        values = (*arguments.args, *arguments.kwargs.values())
        if all(isinstance(value, (Tensor, *PLAIN)) for value in values):
            self._last = arguments, kind, tensors
        return kind, tensors

    def _first_steps(
        self,
        kind: Hashable,
        code: Code | None,
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
        if fault := find_fault(trace.graph) or self._find_change(code, trace):
            self._disable(*fault)
            return self._finish(trace.outputs)
        after = _random_state(device)
        if code is None:
            code = self._codes[kind] = Code(trace, inputs, (moving, batch), self._report)
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

    def _find_change(self, code: Code | None, trace: Trace) -> tuple[str, str] | None:
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
    ) -> Trace:
        """Record one run of the function; the chain's buffers are unchanged."""
        results: list[Outputs] = []
        count = len(self._buffers.values())
        whole = {name: i for name, i in batch.indices.items() if name not in self._partial}

        def step(*flat: Tensor) -> list[Tensor]:
            tensors = iter(flat)
            own = put_together(moving, tensors)
            buffers = [next(tensors).clone() for _ in range(count)]
            indices = {name: torch.arange(len(i), device=i.device) for name, i in whole.items()}
            indices |= {name: next(tensors) for name in self._partial}
            own_batch = Batch(put_together(batch.arguments, tensors), indices, batch.per_chain)
            found: list[Any] = []
            after = self._buffers.run_on(
                buffers, lambda: found.append(self._function(own, own_batch, *static))
            )
            results.append(Outputs(found[0], after))
            outputs: list[Tensor] = []
            take_apart(results[0], outputs)
            return outputs

        start_autograd()
        with pyro.validation_enabled(False):  # checks of values are branches on them
            graph = record_operations(step, *inputs)
        take_whole_plates(graph, inputs)
        constants = constants_as_inputs(graph)
        return Trace(graph, constants, results[0])

    def _finish(self, outputs: Outputs) -> Any:
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


def _warn(explanation: str) -> None:
    warnings.warn(explanation, CompileWarning, stacklevel=8)


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
