# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The random numbers of a step.

``"normal"`` are standard normal. ``"three-point"`` are the noise of weak Euler schemes [1]: 0 with
probability 2/3 and :math:`\pm\sqrt 3` with 1/6 each, whose moments up to the fifth are those of a
normal number. A step sees noise through its sum over many steps only, so the law of a chain differs
by terms of the order of its discretisation; second moments of a linear scheme do not differ at all.

Such a number takes eight random bits here, in place of the two 24-bit numbers, the logarithm and
the cosine of a normal one: the byte is looked up in a table of 256 values. As 256 is no multiple
of 6, the table has two values more, :math:`\pm 1.128`, once each, and :math:`\pm 1.737` 42 times
each, so that the second and the fourth moment are exactly 1 and 3 all the same.

**References**

[1] G. N. Milstein, M. V. Tretyakov (2004), "Stochastic numerics for mathematical physics",
    Springer, section 2.1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Kind = Literal["normal", "three-point"]

LARGE = 2**17
"""Numbers of a chain from which on they come in two halves, which two threads draw at once."""


def three_point_table() -> list[float]:
    r"""
    The 256 values that a byte stands for.

    With counts 170 of 0, 42 each of :math:`\pm a` and one each of :math:`\pm b`, the moments
    :math:`42 a^2 + b^2 = 128` and :math:`42 a^4 + b^4 = 384` are those of 256 normal numbers.
    """
    a2 = (10752 + math.sqrt(21504)) / 3612
    a, b = math.sqrt(a2), math.sqrt(128 - 42 * a2)
    return [0.0] * 170 + [a] * 42 + [-a] * 42 + [b, -b]


class Noise:
    """
    Random numbers of mean 0 and variance 1 for every step of a chain, or of several.

    :param str kind: ``"normal"`` or ``"three-point"``.
    :param Tensor like: of the shape of the numbers, (D,) or (C, D).
    :param generators: one for every chain; None for torch's global one, which then serves all.
    """

    def __init__(
        self, kind: Kind, like: Tensor, generators: Sequence[torch.Generator | None]
    ) -> None:
        self._buffer = torch.empty_like(like)
        self._table: Tensor | None = None
        if kind == "three-point":
            self._table = torch.tensor(three_point_table(), dtype=like.dtype, device=like.device)
        rows = [self._buffer.view(-1)]
        if like.dim() > 1 and generators[0] is not None:
            rows = list(self._buffer)
        self._pieces: list[_Piece] = []
        self._own: list[torch.Generator] = []  # of second halves
        on_cpu = like.device.type == "cpu"
        for row, generator in zip(rows, generators, strict=False):
            if on_cpu and len(row) >= LARGE:
                half = len(row) // 2
                self._own.append(_second(generator))
                self._pieces.append(_Piece(row[:half], generator, self._table))
                self._pieces.append(_Piece(row[half:], self._own[-1], self._table))
            else:
                self._pieces.append(_Piece(row, generator, self._table))
        self._large = on_cpu and self._buffer.numel() >= LARGE and len(self._pieces) > 1
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0  # that of the pool's thread

    def draw(self) -> Tensor:
        """The numbers of the next step, in a buffer that every step reuses."""
        if self._large and torch.get_num_threads() > 1:
            other = self._second_thread().submit(_fill, self._pieces[1::2])
            _fill(self._pieces[::2])
            other.result()
        else:
            _fill(self._pieces)
        return self._buffer

    def _second_thread(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # a fork has no such thread
            self._pool, self._process = ThreadPoolExecutor(1, "noise"), os.getpid()
        return self._pool

    def state(self) -> list[Tensor]:
        """The states of the generators that are its own."""
        return [generator.get_state() for generator in self._own]

    def load(self, states: Sequence[Tensor]) -> None:
        """Goes on from another's :meth:`state`."""
        for generator, state in zip(self._own, states, strict=True):
            generator.set_state(state)


class _Piece:
    """
    A part of the buffer that one generator fills.

    :param Tensor part: a view of the buffer, of one axis.
    :param generator: None for torch's global one.
    :param Tensor table: what a byte stands for, None for normal numbers.
    """

    def __init__(
        self, part: Tensor, generator: torch.Generator | None, table: Tensor | None
    ) -> None:
        self._part = part
        self._generator = generator
        self._table = table
        if table is not None:
            size = (len(part) + 7) // 8
            self._words = torch.empty(size, dtype=torch.int64, device=part.device)
            self._bytes = self._words.view(torch.uint8)[: len(part)]

    def fill(self) -> None:
        """Draws its numbers."""
        if self._table is None:
            self._part.normal_(generator=self._generator)
            return
        self._words.random_(-(2**63), None, generator=self._generator)
        torch.index_select(self._table, 0, self._bytes.int(), out=self._part)


def _fill(pieces: Sequence[_Piece]) -> None:
    for piece in pieces:
        piece.fill()


def _second(generator: torch.Generator | None) -> torch.Generator:
    """A generator for the second half of a chain's numbers, of a stream of its own."""
    if generator is None:
        seed = int(torch.empty((), dtype=torch.int64).random_())
    else:
        words = np.random.SeedSequence([generator.initial_seed(), 2]).generate_state(1, np.uint64)
        seed = int(words[0] >> 1)
    return torch.Generator().manual_seed(seed)


def check_kind(kind: Any) -> None:
    """
    :raises ValueError: if ``kind`` is not the name of one.
    """
    if kind not in get_args(Kind):
        raise ValueError(
            f"noise is {kind!r}, expected 'normal', or 'three-point' for numbers of the same "
            "moments up to the fifth that cost a third"
        )
