# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The random numbers of a step.

``"normal"`` numbers are standard normal. ``"three-point"`` numbers are the noise of weak Euler
schemes [1]: 0 with probability 2/3 and :math:`\pm\sqrt 3` with 1/6 each, whose moments up to the
fifth are those of a normal number. Noise acts through its sum over many steps, so the law of a
chain differs by terms of the order of its discretisation; second moments of a linear scheme do not
differ at all.

A three-point number takes eight random bits: a byte is looked up in a table of 256 values. A normal
one takes two 24-bit numbers, a logarithm and a cosine. As 256 is no multiple of 6, the table has
two more values: :math:`\pm 1.128` once each, and :math:`\pm 1.737` 42 times each, so that the
second and fourth moments are exactly 1 and 3.

Where a CPU draws many three-point numbers, or many bits for a compiled step
(:mod:`pyro_aeb.kernel.random_bits`), the source is NumPy's SFC64 [2], which is faster. All others
are drawn by ``torch.normal_`` and ``torch.random_``. ``python -m tests.benchmarks.noise`` times
these ways and others.

**References**

[1] G. N. Milstein, M. V. Tretyakov (2004), "Stochastic numerics for mathematical physics",
    Springer, section 2.1.

[2] C. Doty-Humphrey, PractRand; ``numpy.random.SFC64``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.kernel.random_bits import three_point_table

Kind = Literal["normal", "three-point"]

KINDS = ("usual", "the same moments up to the fifth, at less cost")

LARGE = 2**15
"""Numbers of a chain from which a CPU draws them by NumPy's generator."""

PIECE = 2**20
"""Three-point numbers whose words are drawn at once; a bound on their memory."""

BITS = 2**15
"""Numbers whose bits are drawn at once: they are copied while in cache, without new pages."""


class Noise:
    """
    Random numbers of mean 0 and variance 1 for every step of a chain, or of several.

    :param Tensor like: of the shape of the numbers, (D,) or (C, D).
    :param generators: one for every chain; None for torch's global one, shared by all. A large
        model's three-point numbers and bits come from a generator of their own, seeded by the
        chain's.
    :param bool bits: whether to draw bits where that is faster;
        :func:`~pyro_aeb.kernel.random_bits.convert_bits` converts them.
    """

    def __init__(
        self,
        kind: Kind,
        like: Tensor,
        generators: Sequence[torch.Generator | None],
        bits: bool = False,
    ) -> None:
        self._options = kind, like, generators
        size, apart = like.shape[-1], like.dim() > 1 and generators[0] is not None
        fill = _choose_row(kind, like, size if apart else like.numel(), bits)
        # Rows of pairs begin at even places.
        padded = size + size % 2 if fill is _ThreePointWords else size
        self._storage = like.new_empty(*like.shape[:-1], padded, dtype=fill.dtype)
        self._size, self._apart = size, apart
        self._buffer, rows = self._cut(self._storage)
        self._rows = [
            fill(row, generator) for row, generator in zip(rows, generators, strict=False)
        ]
        self._ahead: Tensor | None = None
        self._ahead_rows: list[list[Tensor]] = []

    def draw(self) -> Tensor:
        """Draw the numbers of the next step, or bits for them, into a buffer that steps reuse."""
        for row in self._rows:
            row.fill()
        return self._buffer

    def ahead(self, count: int) -> tuple[Tensor, Iterator[None]]:
        """
        Return memory for the numbers of the next steps, which the next call may reuse; and an
        iterator that draws one step's numbers after the other into it.
        """
        if self._ahead is None or len(self._ahead) < count:
            self._ahead = self._storage.new_empty(count, *self._storage.shape)
            self._ahead_rows = [self._cut(storage)[1] for storage in self._ahead]
        return self._ahead[:count, ..., : self._size], self._fill_all()

    def _fill_all(self) -> Iterator[None]:
        fills = [row.fill_other for row in self._rows]
        for rows in self._ahead_rows:
            for fill, row in zip(fills, rows, strict=True):
                fill(row)
            yield

    def _cut(self, storage: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return a buffer, and the rows of it that one generator each fills."""
        rows = list(storage) if self._apart else [storage.view(-1)]
        return storage[..., : self._size], rows

    def with_bits(self) -> Noise:
        """Return the source of the steps that follow, which draws bits where that is faster."""
        after = Noise(*self._options, bits=True)
        if states := self.state():
            after.load(states)
        return after

    def state(self) -> list[Tensor]:
        """Return the states of the generators that are not the chains'."""
        return [words.state() for words in self._words()]

    def load(self, states: Sequence[Tensor]) -> None:
        """
        Restore another's :meth:`state`.

        :raises ModelError: if the other one's numbers had other sources.
        """
        sources = self._words()
        given, expected = ([(s.dtype, *s.shape) for s in of] for of in (states, self.state()))
        if given != expected:
            raise ModelError(
                f"the saved chain's random numbers have generators with states {given}, and here "
                f"they have {expected}; resume with the version of pyro_aeb that the run began with"
            )
        for words, state in zip(sources, states, strict=True):
            words.load(state)

    def _words(self) -> list[_Words]:
        return [row for row in self._rows if isinstance(row, _Words)]


def _choose_row(kind: Kind, like: Tensor, count: int, bits: bool) -> type[_Row]:
    """Return the fastest way to fill a row of ``count`` numbers of the kind of ``like``."""
    large = like.device.type == "cpu" and count >= LARGE
    bits = bits and large and like.dtype == torch.float32
    if kind == "normal":
        return _NormalBits if bits else _Normal
    if bits:
        return _ThreePointBits
    return _ThreePointWords if large else _ThreePoint


class _Row(ABC):
    """
    A row of the buffer, which one generator fills.

    :param generator: None for torch's global one.
    """

    dtype: torch.dtype | None = None
    """The dtype of the row; None for that of the numbers."""

    def __init__(self, row: Tensor, generator: torch.Generator | None) -> None:
        self._row = row
        self._generator = generator

    @abstractmethod
    def fill(self) -> None:
        """Draw the numbers."""

    def fill_other(self, row: Tensor) -> None:
        """Draw the numbers into another row."""
        self.fill()
        row.copy_(self._row)


class _Normal(_Row):
    """Normal numbers of torch's generators."""

    def fill(self) -> None:
        self.fill_other(self._row)

    def fill_other(self, row: Tensor) -> None:
        row.normal_(generator=self._generator)


class _ThreePoint(_Row):
    """Three-point numbers of torch's generators."""

    def __init__(self, row: Tensor, generator: torch.Generator | None) -> None:
        super().__init__(row, generator)
        self._table = row.new_tensor(three_point_table())
        size = (len(row) + 7) // 8
        self._integers = torch.empty(size, dtype=torch.int64, device=row.device)
        self._bytes = self._integers.view(torch.uint8)[: len(row)]

    def fill(self) -> None:
        self._integers.random_(-(2**63), None, generator=self._generator)
        torch.index_select(self._table, 0, self._bytes.int(), out=self._row)


class _Words(_Row):
    """Numbers made of words of SFC64, a stream of its own that the generator seeds."""

    stream: int
    """The number of the stream, of those of one seed."""

    def __init__(self, row: Tensor, generator: torch.Generator | None) -> None:
        super().__init__(row, generator)
        if generator is None:
            entropy = [int(torch.empty((), dtype=torch.int64).random_())]
        else:
            entropy = [generator.initial_seed(), self.stream]
        self._source = np.random.SFC64(np.random.SeedSequence(entropy))

    def state(self) -> Tensor:
        words: Any = self._source.state["state"]["state"]
        return torch.from_numpy(words.view(np.int64).copy())

    def load(self, state: Tensor) -> None:
        whole: Any = self._source.state
        whole["state"]["state"] = state.numpy().view(np.uint64)
        self._source.state = whole

    def _next(self, count: int, dtype: Any) -> np.ndarray:
        """Return ``count`` integers of ``dtype``, using every bit of the generator's output."""
        size = np.dtype(dtype).itemsize
        return self._source.random_raw(-(-count * size // 8)).view(dtype)[:count]


class _ThreePointWords(_Words):
    """Three-point numbers, looked up two bytes at a time as one complex number."""

    stream = 2

    def __init__(self, row: Tensor, generator: torch.Generator | None) -> None:
        super().__init__(row, generator)
        self._pieces = torch.view_as_complex(row.view(-1, 2)).split(PIECE // 2)
        self._table = _pairs(row.dtype)

    def fill(self) -> None:
        for piece in self._pieces:
            places = torch.from_numpy(self._next(len(piece), np.uint16)).int()
            torch.index_select(self._table, 0, places, out=piece)


class _Bits(_Words):
    """Bits for a compiled step."""

    def fill(self) -> None:
        row = self._row.numpy()
        for start in range(0, len(row), BITS):
            piece = row[start : start + BITS]
            piece[:] = self._next(len(piece), row.dtype)


class _NormalBits(_Bits):
    """Integers of 32 bits for normal numbers."""

    stream, dtype = 3, torch.int32


class _ThreePointBits(_Bits):
    """Bytes for three-point numbers, those of :class:`_ThreePointWords`."""

    stream, dtype = 2, torch.uint8


@cache
def _pairs(dtype: torch.dtype) -> Tensor:
    """Return the two numbers of every two bytes, one table for all chains."""
    table = torch.tensor(three_point_table(), dtype=dtype)
    two_bytes = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.uint8))
    return torch.view_as_complex(table[two_bytes.long()].view(-1, 2))
