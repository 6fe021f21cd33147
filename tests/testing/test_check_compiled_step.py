# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``check_compiled_step``: which steps can be compiled, and that these are the same steps."""

from __future__ import annotations

import math

import pytest
from samplers import transition_classes

import pyro_aeb as aeb
from pyro_aeb.testing.compiled import check_compiled_step
from pyro_aeb.transitions import (
    BAOAB,
    HMC,
    PSGLD,
    SGNHT,
    SVRG,
    ContourSGLD,
    CyclicalSGMCMC,
    ReplicaExchange,
    TunedBAOAB,
)

WHOLE = [
    aeb.SGLD(0.1),
    aeb.SGHMC(0.1),
    SGNHT(0.1),
    BAOAB(0.1),
    TunedBAOAB(0.1, friction=0.1, scale=1.0),
    CyclicalSGMCMC(aeb.SGHMC(aeb.Cyclical(0.08, period=8)), exploration=0.5),
]
OF_Q = [
    PSGLD(0.1),
    SVRG(aeb.SGLD(0.1), every=3),
    ReplicaExchange(aeb.SGLD(0.1)),
    ContourSGLD(0.1, energies=(0.0, 10.0)),
    HMC(0.1),
]


def test_every_transition_is_here():
    assert {type(transition) for transition in WHOLE + OF_Q} == transition_classes()


@pytest.mark.parametrize("transition", WHOLE, ids=lambda t: type(t).__name__)
def test_steps_that_are_compiled_as_a_whole(transition):
    assert "make the same steps" in check_compiled_step(transition).result


@pytest.mark.parametrize("transition", OF_Q, ids=lambda t: type(t).__name__)
def test_steps_whose_gradient_alone_is_compiled(transition):
    assert "gradient alone" in check_compiled_step(transition).result


class OfNumbers(aeb.SGLD):
    """Takes the root of a number, which a compiled step has none of."""

    def step(self, state, gradient, noise, numbers):
        epsilon, tau = numbers
        spread = math.sqrt(2.0 * epsilon / tau)
        return type(state)(state.position + epsilon * gradient + spread * noise)


class Counting(aeb.SGLD):
    """Moves by its own count of steps."""

    counts = [0]

    def step(self, state, gradient, noise, numbers):
        self.counts[0] += 1
        return super().step(state, gradient, self.counts[0] * noise, numbers)


def test_a_step_that_cannot_be_recorded_is_no_error():
    assert "cannot be recorded" in check_compiled_step(OfNumbers(0.1)).result


def test_a_recorded_step_that_is_another_is_an_error():
    with pytest.raises(AssertionError, match="compiled: .*differ by.*Python values that change"):
        check_compiled_step(Counting(0.1))
