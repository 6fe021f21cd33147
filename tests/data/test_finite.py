# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The count of non-finite numbers, and the memory that it takes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_aeb.data import finite
from pyro_aeb.data.finite import count_non_finite


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor but views of one."""

    def __init__(self, data):
        super().__init__()
        self.bytes = 0
        self.pointer = data.data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != self.pointer:
            self.bytes = max(self.bytes, made.untyped_storage().size())
        return made


SHAPES = [(), (0,), (5,), (101,), (1, 101), (3, 40), (50, 3, 2), (2, 2, 2, 2, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_counts_in_chunks(shape, bad, monkeypatch):
    monkeypatch.setattr(finite, "CHUNK", 17)
    value = torch.zeros(shape)
    assert count_non_finite(value) == 0
    value.view(-1)[::3] = bad
    expected = -(-value.numel() // 3)
    assert count_non_finite(value) == count_non_finite(value.double()) == expected
    assert count_non_finite(value.mT if value.dim() > 1 else value) == expected


def test_integers_are_finite():
    assert count_non_finite(torch.arange(3)) == 0
    assert count_non_finite(torch.tensor([True])) == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_memory_does_not_grow_with_the_data(transposed):
    value = torch.zeros(3000, 1000)
    value = value.T if transposed else value
    with Largest(value) as largest:
        assert count_non_finite(value) == 0
    assert 0 < largest.bytes <= 4 * finite.CHUNK < value.untyped_storage().size() / 2
