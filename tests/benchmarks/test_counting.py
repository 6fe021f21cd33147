# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Operations and waits: that they are counted right, and how many a step of the kernel has."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from .counting import GRADIENT, Counts, count
from .peers import ours
from .peers.base import Peer
from .workloads import WORKLOADS, convolutional, resnet

UPDATE = 70
"""The most operations of an update, whatever the number of layers."""


def test_operations_are_those_that_the_program_calls_and_waits_those_that_read_a_value():
    x = torch.ones(3, 3)
    peer = Peer(lambda: torch.nn.functional.linear(x, x).sum().item())
    # linear calls t and matmul in its turn.
    assert count(peer) == Counts(operations=3, update=None, waits=1)


def test_what_is_inside_of_the_gradient_is_no_part_of_the_update():
    x = torch.ones(3)

    def inside(step):
        with torch.profiler.record_function(GRADIENT):
            x.exp()
            x.log()
        return step()

    assert count(Peer(lambda: x.add_(1.0), inside=inside)) == Counts(3, 1, 0)


def test_operations_of_another_framework_are_not_counted():
    assert count(Peer(lambda: None, torch=False)) is None


# What operations there are does not depend on the size of a batch.
SMALL = WORKLOADS | {"C": partial(convolutional, 8), "R": partial(resnet, 8)}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("as_in_mcmc")
def test_a_step_calls_few_operations_beside_the_gradient_and_waits_for_none(name):
    counts = count(ours.start(SMALL[name]()))
    assert counts.update <= UPDATE
    assert counts.waits == 0
