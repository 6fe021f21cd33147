# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Convert random bits to random numbers of single precision, elementwise.

A compiled step gets bits and converts them where it uses them, without a pass over memory for the
numbers. Integers of 32 bits become normal numbers, by Wichura's approximation of the inverse of the
distribution function [1]; bytes become three-point ones, by :func:`three_point_table`.

**References**

[1] M. J. Wichura (1988), "Algorithm AS 241: the percentage points of the normal distribution",
    Applied Statistics 37, routine PPND7.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Counts, of 256, of the values of three-point numbers: 0, and each of +-a and +-b.
_ZERO, _A, _B = 170, 42, 1
_A2 = (10752 + math.sqrt(21504)) / 3612
_VALUES = math.sqrt(_A2), math.sqrt(128 - 42 * _A2)

# PPND7: numerators and denominators by falling powers, near the centre and in the tails.
_CENTRE = (
    (5.9109374720e1, 1.5929113202e2, 5.0434271938e1, 3.3871327179e0),
    (6.7187563600e1, 7.8757757664e1, 1.7895169469e1, 1.0),
)
_TAIL = (
    (1.7023821103e-1, 1.3067284816e0, 2.7568153900e0, 1.4234372777e0),
    (1.2021132975e-1, 7.3700164250e-1, 1.0),
)


def three_point_table() -> list[float]:
    r"""
    Return the three-point numbers of all 256 bytes.

    With counts 170 of 0, 42 each of :math:`\pm a` and one each of :math:`\pm b`, the moments
    :math:`42 a^2 + b^2 = 128` and :math:`42 a^4 + b^4 = 384` are those of 256 normal numbers.
    """
    a, b = _VALUES
    return [0.0] * _ZERO + [a] * _A + [-a] * _A + [b] * _B + [-b] * _B


def convert_bits(drawn: Tensor) -> Tensor:
    """
    Convert drawn bits to floating-point numbers.

    :param Tensor drawn: of :class:`~pyro_aeb.kernel.noise.Noise`: integers of 32 bits, bytes, or
        numbers.
    """
    if drawn.dtype == torch.int32:
        return normal(drawn)
    return three_point(drawn) if drawn.dtype == torch.uint8 else drawn


def normal(bits: Tensor) -> Tensor:
    """
    Return normal numbers: the inverse of the distribution function, to one part in a million.

    :param Tensor bits: integers of 32 bits. The last one is not used: with it set, an integer is
        never 0, and a share of the distribution never 0 or 1; the largest number is 6.23.
    """
    odd = bits | 1
    x = odd.float() * 2.0**-32  # the share of the distribution below, less a half
    tail = ((0x7FFFFFFF - odd.abs()).float() + 1.0) * 2.0**-32  # 1/2 - |x|, exact near 0
    r = 0.180625 - x * x
    s = (-tail.log()).sqrt() - 1.6
    centre = r >= 0.0
    over = torch.where(centre, x * _power_series(_CENTRE[0], r), _power_series(_TAIL[0], s))
    under = torch.where(centre, _power_series(_CENTRE[1], r), _power_series(_TAIL[1], s))
    return torch.where(centre, over, over.copysign(x)) / under


def three_point(bits: Tensor) -> Tensor:
    """
    Return three-point numbers, the values of :func:`three_point_table`.

    :param Tensor bits: bytes.
    """
    place = bits.int()
    (a, b), (plus, minus) = _VALUES, (_ZERO + _A, _ZERO + 2 * _A)
    size = torch.where(place < _ZERO, 0.0, torch.where(place < minus, a, b))
    positive = (place < plus) | ((place >= minus) & (place < minus + _B))
    return torch.where(positive, size, -size).float()  # also where torch's default is double


def _power_series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    first, *others = coefficients
    value = first * x + others[0]
    for coefficient in others[1:]:
        value = value * x + coefficient
    return value
