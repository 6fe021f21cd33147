# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Many runs of compiled code in one call, without Python between them.

For a CPU torch's compiler writes functions in C++, whose arguments are addresses, and a function in
Python that allocates memory and calls them. On a small model the Python takes longer than the
arithmetic. :func:`make_loop` records once which addresses are passed; a :class:`Loop` makes the
same calls for many runs from a table of addresses. Machine code and numbers are the same.

Code that calls operations of torch as well, as for products of large matrices, is not repeated so.
A loop is used only if its first runs give the numbers of the compiler's own code, bit for bit.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.data.minibatches import Cuts

MOST = 128
"""The most runs of one call."""

ARGUMENTS = 64
"""The most arguments of a function of the compiler's."""

LINE = 64
"""Bytes of a cache line; every tensor begins at one."""

Run = Callable[..., Sequence[Tensor]]


class Loop:
    """
    Runs of compiled code; see :func:`make_loop`.

    :param recording: the calls of one run.
    :param moves: numbers of inputs, and of the outputs of the run before that they are.
    :param given: numbers of the inputs that are new in every run.
    """

    def __init__(
        self, recording: _Recording, moves: Mapping[int, int], given: Sequence[int]
    ) -> None:
        self._functions = np.array(recording.functions, np.uint64)
        self._counts = np.array([len(places) for places in recording.places], np.int64)
        self._constants = recording.constants  # kept alive, as their addresses are in the table
        own = [number for _, (_, number, _) in recording.outputs]
        self._others = sorted(set(range(len(own))) - set(moves.values()))
        others = {own[i] for i in self._others}
        self._memory = [
            _Memory(tensor, MOST if a in others else 2 if a in own else 1)
            for a, tensor in enumerate(recording.allocated)
        ]
        self._outputs = [self._memory[p.number].view(t, p.offset) for t, p in recording.outputs]
        self._last = [[stacked[k % len(stacked)] for stacked in self._outputs] for k in range(2)]
        self._given: list[tuple[int, int, int]] = []  # place in ``given``, column, offset
        self._first: list[tuple[int, int, int]] = []  # input, column, offset
        self._fixed: list[tuple[int, int, int]] = []
        self._pointed: list[int] = []
        places = [place for of_function in recording.places for place in of_function]
        self._table = np.zeros((MOST, len(places)), np.uint64)
        for column, place in enumerate(places):
            if place.kind == "allocated":
                self._table[:, column] = self._addresses(place)
            elif place.kind == "constant":
                self._table[:, column] = recording.constants[place.number].data_ptr() + place.offset
            elif place.number in given:
                self._given.append((given.index(place.number), column, place.offset))
            elif place.number in moves:
                source = recording.outputs[moves[place.number]][1]
                before = self._addresses(source._replace(offset=source.offset + place.offset))
                self._table[1:, column] = before[:-1]
                self._first.append((place.number, column, place.offset))
            else:
                self._fixed.append((place.number, column, place.offset))

    def __call__(
        self, inputs: Sequence[Tensor], given: Sequence[Tensor | Sequence[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """
        Run the code as often as inputs are given, at most :data:`MOST` times.

        :param inputs: of the first run.
        :param given: the inputs that are new in every run: of each one a run, or these stacked.
        :returns: the outputs of the last run; and, stacked over runs, the outputs that the next run
            does not take, which the next call overwrites.
        :raises RuntimeError: if the code raises an error.
        """
        count, table = len(given[0]), self._table
        for i, column, offset in self._first:
            table[0, column] = inputs[i].data_ptr() + offset
        addresses = [inputs[i].data_ptr() for i, _, _ in self._fixed]
        if addresses != self._pointed:
            for address, (_, column, offset) in zip(addresses, self._fixed, strict=True):
                table[:, column] = address + offset
            self._pointed = addresses
        for i, column, offset in self._given:
            table[:count, column] = _addresses(given[i]) + np.uint64(offset)
        functions, counts = self._functions, self._counts
        made = _repeat()(
            count, len(functions), functions.ctypes.data, counts.ctypes.data, table.ctypes.data
        )
        if made != count:
            raise RuntimeError(f"run {made + 1} of {count} has failed")
        last = [tensor.clone() for tensor in self._last[(count - 1) % 2]]
        for i in self._others:
            last[i] = self._outputs[i][count - 1].clone()
        return last, [self._outputs[i][:count] for i in self._others]

    def _addresses(self, place: _Place) -> np.ndarray:
        """Return the address of a place in allocated memory, in each run."""
        return self._memory[place.number].addresses() + np.uint64(place.offset)


def make_loop(
    run: Run, inputs: Sequence[Tensor], moves: Mapping[int, int], given: Sequence[int]
) -> Loop | None:
    """
    Return a loop over compiled code; None where its runs cannot be repeated so.

    :param run: the compiled code, which changes no input.
    :param inputs: of a run.
    :param moves: numbers of inputs, and of the outputs of the run before that they are.
    :param given: numbers of the inputs that are new in every run.
    """
    own = [torch.empty_like(tensor).copy_(tensor) for tensor in inputs]
    try:
        with torch.random.fork_rng(devices=[]):  # code with random numbers is run once, too
            recording = _record(run, own)
        loop = Loop(recording, moves, given)
        return loop if _is_right(loop, run, own, moves, given) else None
    except Exception:  # of whatever kind: the compiler has written other code than is known here
        return None


def _is_right(
    loop: Loop, run: Run, inputs: Sequence[Tensor], moves: Mapping[int, int], given: Sequence[int]
) -> bool:
    """Return whether three runs of a loop give what the code gives, bit for bit."""
    last, others = loop(inputs, [[inputs[i]] * 3 for i in given])
    now, expected, each = list(inputs), [], []
    for _ in range(3):
        expected = list(run(*now))
        each.append([tensor for i, tensor in enumerate(expected) if i not in moves.values()])
        for i, output in moves.items():
            now[i] = expected[output]
    pairs = [*zip(last, expected, strict=True)]
    pairs += zip(others, map(torch.stack, zip(*each, strict=True)), strict=True)
    return all(_have_equal_bits(one, other) for one, other in pairs)


def _addresses(tensors: Tensor | Sequence[Tensor]) -> np.ndarray:
    """Return the addresses of several tensors."""
    if isinstance(tensors, Tensor):
        places = np.arange(len(tensors)) * (tensors.stride(0) * tensors.element_size())
        return places.astype(np.uint64) + np.uint64(tensors.data_ptr())
    if isinstance(tensors, Cuts):
        return np.array(tensors.addresses(), np.uint64)
    return np.array([tensor.data_ptr() for tensor in tensors], np.uint64)


def _have_equal_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


class _Memory:
    """
    Memory for a tensor that a run allocates.

    :param Tensor like: the tensor.
    :param int copies: as many runs one after the other have memory of their own.
    """

    def __init__(self, like: Tensor, copies: int) -> None:
        self._copies = copies
        self._bytes = -(-like.untyped_storage().nbytes() // LINE) * LINE
        self._storage = torch.empty(copies * self._bytes, dtype=torch.uint8).untyped_storage()

    def addresses(self) -> np.ndarray:
        """Return the address that each run takes."""
        places = np.arange(MOST) % self._copies * self._bytes
        return places.astype(np.uint64) + np.uint64(self._storage.data_ptr())

    def view(self, tensor: Tensor, offset: int) -> Tensor:
        """Return all copies of a tensor that lies in this memory, some bytes from its start."""
        size = tensor.element_size()
        shape = (self._copies, *tensor.shape)
        strides = (self._bytes // size, *tensor.stride())
        return torch.empty(0, dtype=tensor.dtype).set_(
            self._storage, offset // size, shape, strides
        )


class _Place(NamedTuple):
    """
    The target of an address of a recorded run.

    :param str kind: ``"input"``, ``"allocated"`` or ``"constant"``.
    :param int number: of the tensor, of its kind.
    :param int offset: bytes from the start of the tensor's memory.
    """

    kind: str
    number: int
    offset: int


class _Recording(NamedTuple):
    """
    The calls of one run.

    :param functions: their addresses.
    :param places: of the arguments of each.
    :param allocated: the tensors that the run has allocated.
    :param constants: the tensors that the code holds.
    :param outputs: the tensors returned, and their places.
    """

    functions: list[int]
    places: list[list[_Place]]
    allocated: list[Tensor]
    constants: list[Tensor]
    outputs: list[tuple[Tensor, _Place]]


def _record(run: Run, inputs: Sequence[Tensor]) -> _Recording:
    """
    Record the calls of one run of compiled code.

    :param inputs: each has memory of its own.
    :raises ValueError: if the code does other things than allocate memory and call functions.
    """
    code, names = _find_python(run, inputs)
    functions = {n: v for n, v in names.items() if n in code.co_names and n.startswith("cpp_")}
    constants = [names[n] for n in code.co_names if isinstance(names.get(n), Tensor)]
    known = {"empty_strided_cpu", "reinterpret_tensor", "torch", *functions}
    strange = {n for n in code.co_names if n in names and not isinstance(names[n], Tensor)} - known
    if strange or "ops" in code.co_names or not functions:
        raise ValueError(f"the compiled code calls {strange or 'operations of torch'}")
    allocated: list[Tensor] = []
    called: list[tuple[int, tuple[Tensor, ...]]] = []

    def allocate(*arguments: Any) -> Tensor:
        allocated.append(names["empty_strided_cpu"](*arguments))
        return allocated[-1]

    def recorded(function: Any) -> Callable[..., Any]:
        address = _address(function)

        def call(*arguments: Tensor) -> Any:
            called.append((address, arguments))
            return function(*arguments)

        return call

    own = {**names, "empty_strided_cpu": allocate}
    own |= {name: recorded(function) for name, function in functions.items()}
    first = [None] * (code.co_argcount - 1)  # of a method
    outputs = FunctionType(code, own)(*first, [*inputs])
    find = _Finder(input=inputs, allocated=allocated, constant=constants)
    return _Recording(
        [address for address, _ in called],
        [[find(tensor) for tensor in arguments] for _, arguments in called],
        allocated,
        constants,
        [(tensor, find.allocated(tensor)) for tensor in outputs],
    )


def _find_python(run: Run, inputs: Sequence[Tensor]) -> tuple[CodeType, dict[str, Any]]:
    """
    Return the compiler's Python function for compiled code, and the names that it knows.

    :raises ValueError: if there is none, or more than one.
    """
    found: list[tuple[CodeType, dict[str, Any]]] = []

    def watch(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "call":
            if "empty_strided_cpu" in frame.f_globals:
                found.append((frame.f_code, frame.f_globals))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run(*inputs)
    finally:
        sys.setprofile(before)
    if len(found) != 1:
        raise ValueError(f"{len(found)} functions of the compiler were called, expected one")
    return found[0]


class _Finder:
    """Finds the places of tensors by their memory."""

    def __init__(self, **kinds: Sequence[Tensor]) -> None:
        self._starts = {
            tensor.untyped_storage().data_ptr(): (kind, number)
            for kind, tensors in kinds.items()
            for number, tensor in enumerate(tensors)
        }

    def __call__(self, tensor: Tensor) -> _Place:
        """:raises KeyError: if it is in none of the known tensors' memory."""
        start = tensor.untyped_storage().data_ptr()
        return _Place(*self._starts[start], tensor.data_ptr() - start)

    def allocated(self, tensor: Tensor) -> _Place:
        """:raises ValueError: if it is not in memory that was allocated."""
        place = self(tensor)
        if place.kind != "allocated":
            raise ValueError("an output of the compiled code is no tensor of its own")
        return place


def _address(function: Any) -> int:
    """Return the address of a function of the compiler's, which is named ``kernel`` in its file."""
    library = ctypes.CDLL(function.__self__.__file__)
    address = ctypes.cast(library.kernel, ctypes.c_void_p).value
    assert address is not None
    return address


@cache
def _repeat() -> Any:
    """Return the C++ function that makes the calls of a table; it is compiled once a machine."""
    from torch._inductor.codecache import CppCodeCache

    function = CppCodeCache.load("".join(_write_source())).repeat
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    return function


def _write_source() -> Iterator[str]:
    """Write the loop, and calls of functions with 1, 2, ... addresses."""
    yield "#include <cstdint>\ntypedef void* A;\nstatic void call(A f, int64_t count, A* a) {\n"
    yield "switch (count) {\n"
    for n in range(1, ARGUMENTS + 1):
        types, values = ", ".join(["A"] * n), ", ".join(f"a[{i}]" for i in range(n))
        yield f"case {n}: reinterpret_cast<void (*)({types})>(f)({values}); break;\n"
    yield "default: throw 0;\n}\n}\n"
    yield """extern "C" int64_t repeat(int64_t runs, int64_t functions, A* f, int64_t* n, A* a) {
  int64_t made = 0;
  try {
    for (; made < runs; made++)
      for (int64_t i = 0; i < functions; a += n[i++]) call(f[i], n[i], a);
  } catch (...) {
  }
  return made;
}
"""
