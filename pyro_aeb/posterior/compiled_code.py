# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The compiled code of a step, for one kind of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_aeb.errors import first_line
from pyro_aeb.posterior.graphs import call_methods, call_pooling, copy_passed_outputs
from pyro_aeb.posterior.loop import Loop, make_loop
from pyro_aeb.posterior.trees import equal, put_together, take_apart, write_constructor

AGAIN = 16
"""The operations are recorded again at batches 2, 32, 512, ... of a kind."""

SMALL = 2**18
"""
Numbers in a step's inputs up to which its code runs in one thread: on a busy machine a second one
may keep it waiting for longer than the step takes.
"""


class Outputs(NamedTuple):
    """The outputs of a run of a function that runs the model."""

    result: Any
    buffers: list[Tensor]


class Trace(NamedTuple):
    """
    The recorded operations of a step.

    :param GraphModule graph: a function of the inputs and then of the constants.
    :param list constants: tensors that the model takes from elsewhere, such as weights that are
        not sampled. They are read at every step.
    """

    graph: GraphModule
    constants: list[Tensor]
    outputs: Outputs


class Code:
    """The compiled code for one kind of batches."""

    def __init__(
        self,
        trace: Trace,
        inputs: Sequence[Tensor],
        arguments: Any,
        report: Callable[[str], None],
    ) -> None:
        self.batches = 1
        self._check_at = 2
        self._operations = trace.graph.code
        self._constants = trace.constants
        outputs: list[Tensor] = []
        self._kind = take_apart(trace.outputs, outputs)
        self.outputs = len(outputs)
        self.is_small = is_small(inputs)
        self.make_outputs = write_constructor(trace.outputs)
        # Kept alive: the kind of a batch has their ids.
        self._arguments = put_together(arguments, repeat(torch.empty(0)))
        self._run: Callable[..., Sequence[Tensor]] = trace.graph
        self._loop: Loop | None = None
        self._example: list[Tensor] | None = None
        if inputs[0].device.type == "cpu":
            if self.is_small:
                copy_passed_outputs(trace.graph)
                self._example = [value.clone() for value in (*inputs, *trace.constants)]
            else:
                call_pooling(trace.graph)
        try:
            with torch.no_grad():
                self._run = compile_graph(trace.graph, [*inputs, *trace.constants])
        except Exception as error:  # of whatever kind the compiler's failures are
            self._example = None
            call_methods(trace.graph)
            report(
                f"the compiler has failed ({first_line(error)}), so a step runs its operations one "
                "by one, without the model's Python. It needs a C++ compiler (g++ or clang) on "
                "the path, on a GPU Triton"
            )

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        outputs: Outputs = self.make_outputs(self.run(inputs))
        return outputs

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs as a list of tensors."""
        return self._run(*inputs, *self._constants)

    @torch.no_grad()
    def repeat(
        self,
        inputs: list[Tensor],
        moves: Mapping[int, int],
        places: Sequence[int],
        given: Sequence[Tensor | Sequence[Tensor]],
        draw: Callable[[], None],
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """
        Run the code on what it has returned: the code of single runs on the same numbers, with less
        Python around it, or with none.

        :param inputs: of the first run.
        :param moves: numbers of inputs, and of the outputs of the run before that they are.
        :param places: numbers of the inputs that are new in every run.
        :param given: these, of every run.
        :param draw: called before every run; writes what is given in it.
        :returns: the outputs of the last run; and, stacked over runs, those that no run takes.
        """
        count = len(given[0])
        self.batches += count
        if self._example is not None:
            self._loop = make_loop(self._run, self._example, moves, places)
            self._example = None
        if self._loop is not None:  # the code draws no random numbers, so that all are drawn before
            for _ in range(count):
                draw()
            return self._loop([*inputs, *self._constants], given)
        others = [i for i in range(self.outputs) if i not in moves.values()]
        kept: list[list[Tensor]] = []
        outputs: Sequence[Tensor] = ()
        for k in range(count):
            draw()
            for i, tensors in zip(places, given, strict=True):
                inputs[i] = tensors[k]
            outputs = self.run(inputs)
            for i, output in moves.items():
                inputs[i] = outputs[output]
            kept.append([outputs[i] for i in others])
        return outputs, [torch.stack(tensors) for tensors in zip(*kept, strict=True)]

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

    def is_of(self, trace: Trace) -> bool:
        """Return whether a trace has the same operations on the same constants."""
        return (
            self._operations == trace.graph.code
            and self._kind == take_apart(trace.outputs, [])
            and len(self._constants) == len(trace.constants)
            and all(map(equal, self._constants, trace.constants))
        )


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """
    Compile a graph; it draws the same random numbers as the model as written. The code is kept in
    torch's cache, which takes graphs of fake tensors only.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile  # takes seconds to import
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    options: dict[str, Any] = {"fallback_random": True, "size_asserts": False}
    if is_small(inputs):
        options["cpp.threads"] = 1
    mode = FakeTensorMode(shape_env=ShapeEnv())
    shapes = [mode.from_tensor(value, static_shapes=True) for value in inputs]
    with tracing(TracingContext(mode)):
        return compile(graph, [*shapes], options=options)


def is_small(inputs: Sequence[Tensor]) -> bool:
    """Return whether a step has few numbers, at most :data:`SMALL`."""
    return sum(map(Tensor.numel, inputs)) <= SMALL
