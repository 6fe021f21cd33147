# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The stages of a cycle, and crossing between modes."""

import re

import pytest
import torch
from bimodal import simulate

from pyro_aeb.schedules import Constant, Cyclical
from pyro_aeb.transitions import SGHMC, SGLD, CyclicalSGMCMC, StepNumbers


@pytest.mark.parametrize(
    "period, exploration", [(10, 0.5), (10, 0.3), (7, 0.5), (10, 0.0), (1, 0.0)]
)
def test_the_first_share_of_a_cycle_explores(period, exploration):
    transition = CyclicalSGMCMC(SGLD(Cyclical(0.1, period)), exploration)
    state = transition.init(torch.zeros(3, 2))
    for k in range(1, 3 * period + 1):
        numbers = StepNumbers(transition.step_size(k), 2.0)
        found = transition.statistics(state, state, numbers)["sampling"]
        phase = ((k - 1) % period) / period  # r(k) of the paper's algorithm 1
        assert torch.equal(found, torch.full((3,), 0.0 if phase < exploration else 1.0)), k


def test_exploration_has_no_noise_and_sampling_is_the_inner_transition():
    inner = SGHMC(Cyclical(0.1, 10), friction=0.3)
    transition = CyclicalSGMCMC(inner)
    state = inner.init(torch.ones(3))
    gradient, noise = torch.randn(2, 3)
    large, small = StepNumbers(0.09, 2.0), StepNumbers(0.01, 2.0)
    found = transition.step(state, gradient, noise, large)
    expected = inner.step(state, gradient, torch.zeros(3), large)
    assert torch.equal(found.position, expected.position)
    found = transition.step(state, gradient, noise, small)
    assert torch.equal(found.position, inner.step(state, gradient, noise, small).position)


def test_the_temperature_of_an_exploring_step_is_nan():
    transition = CyclicalSGMCMC(SGHMC(Cyclical(0.1, 10)))
    state = transition.init(torch.ones(2, 3))
    for size, finite in ((0.09, False), (0.01, True)):
        figures = transition.statistics(state, state, StepNumbers(size, 1.0))
        assert figures.keys() == {"kinetic_temperature", "sampling"}
        assert bool(figures["kinetic_temperature"].isfinite().all()) == finite


def test_large_steps_with_noise_of_the_gradient_cross_between_modes():
    """
    All chains begin in the mode at -3. Small steps with noise of the gradient stay there; a cycle
    that begins with large ones leaves chains in both, and samples with the small ones. (In which
    share is not what the modes weigh: see the docstring.)
    """

    def share_at_three(transition):
        *_, (_, state, _, _) = simulate(transition, 1000, 200, noise=10.0)
        return float((state.position > 0.0).double().mean())

    assert share_at_three(SGLD(0.002)) == 0.0
    cycled = share_at_three(CyclicalSGMCMC(SGLD(Cyclical(0.4, period=500))))
    assert 0.1 < cycled < 0.9


def test_junk_is_refused():
    for inner in (SGLD(0.1), SGLD(Constant(0.1))):
        with pytest.raises(TypeError, match="expected one with cycles, such as SGLD"):
            CyclicalSGMCMC(inner)
    for share in (-0.1, 1.0, float("nan")):
        message = f"exploration is {share}, expected a number in [0, 1)"
        with pytest.raises(ValueError, match=re.escape(message)):
            CyclicalSGMCMC(SGLD(Cyclical(0.1, 10)), share)
