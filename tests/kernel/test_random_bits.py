# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What random bits stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from pyro_aeb.kernel.random_bits import convert_bits, normal, three_point, three_point_table

TOP = 2**31
EVERYWHERE = np.unique(
    np.concatenate(
        [
            TOP - np.geomspace(1, TOP, 20_000).round().astype(np.int64),  # towards the tail
            np.linspace(0, TOP - 1, 20_000).astype(np.int64),
        ]
    )
)


def numbers_of_both_signs() -> torch.Tensor:
    positive = torch.from_numpy(EVERYWHERE).int()
    return torch.cat([positive, -positive - 1, torch.tensor([-TOP], dtype=torch.int32)])


def test_normal_numbers_are_the_inverse_of_the_distribution_function():
    """Single precision is 2**-24; the method adds 1e-7 of its own, and a few operations theirs."""
    bits = numbers_of_both_signs()
    odd = bits.numpy().astype(np.int64) | 1
    below = np.ldexp((TOP - np.abs(odd)).astype(np.float64), -32)  # the share further out
    expected = -np.sign(odd) * ndtri(below)
    found = normal(bits)
    assert found.dtype == torch.float32
    assert found.double().numpy() == pytest.approx(expected, rel=16 * 2.0**-24, abs=0)


def test_normal_numbers_are_symmetric_and_grow_with_the_bits():
    bits = numbers_of_both_signs().sort().values
    found = normal(bits)
    assert torch.equal(normal(-(bits | 1)), -found)
    assert found[-1] == pytest.approx(-ndtri(2.0**-32), rel=1e-6)
    # Two ways meet where they are equally good; no step down is larger than rounding.
    assert (found.diff() >= -8 * 2.0**-24 * found[1:].abs()).all()


def test_the_shares_of_normal_numbers_are_those_of_the_bits():
    """Of 2**16 equally spaced integers as many are below each decile as should be, to one."""
    numbers = normal(torch.arange(-TOP, TOP, 2**16).int()).double()
    deciles = torch.from_numpy(ndtri(np.arange(1, 10) / 10))
    counts = (numbers[:, None] < deciles).sum(0)
    assert ((counts - 2**16 * torch.arange(1, 10) / 10).abs() <= 1).all()


def test_the_table_and_what_a_byte_stands_for_are_one():
    found = three_point(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(found, torch.tensor(three_point_table()))


def test_numbers_are_of_single_precision_whatever_torchs_default_is():
    torch.set_default_dtype(torch.float64)
    for bits in (torch.arange(256, dtype=torch.uint8), numbers_of_both_signs()):
        assert convert_bits(bits).dtype == torch.float32


def test_numbers_stay_as_they_are():
    for dtype in (torch.float32, torch.float64):
        numbers = torch.randn(3, dtype=dtype)
        assert convert_bits(numbers) is numbers
