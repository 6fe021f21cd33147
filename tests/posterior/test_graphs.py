# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Changes of recorded operations before they are compiled."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import max_pool2d

from pyro_aeb.posterior.graphs import call_pooling

FORMATS = [torch.contiguous_format, torch.channels_last]


def pool(x):
    """Pooled images, and the gradient of the sum of their squares."""
    pooled = max_pool2d(x, 3, stride=2, padding=1)
    return pooled, torch.func.grad(lambda x: max_pool2d(x, 3, 2, 1).square().sum())(x)


@pytest.mark.parametrize("format", FORMATS)
def test_pooling_is_torchs_own(format):
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=format)
    graph = make_fx(pool)(x)
    call_pooling(graph)
    assert "aten.max_pool2d" not in graph.code and "pyro_aeb.max_pool2d" in graph.code
    for own, expected in zip(graph(x), pool(x), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_the_compiler_knows_shapes_and_strides_of_pooling(format):
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=format)
    graph = make_fx(pool)(x)
    call_pooling(graph)
    mode = FakeTensorMode()
    with mode:
        expected = graph(mode.from_tensor(x))
    for own, fake in zip(graph(x), expected, strict=True):
        assert (own.shape, own.stride(), own.dtype) == (fake.shape, fake.stride(), fake.dtype)
