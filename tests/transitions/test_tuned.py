# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""TunedBAOAB is BAOAB in weights divided by their scales, whatever its settings are."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_aeb.schedules import Polynomial
from pyro_aeb.transitions import BAOAB, StepNumbers, TunedBAOAB

SCALE = torch.tensor([0.5, 4.0, 1e-3], dtype=torch.float64)


def force(z):
    """Of a quartic Q, so that nothing is linear."""
    return -(z**3) - z


def test_it_is_baoab_of_scaled_weights():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    plain, tuned = BAOAB(1.0, 0.3), TunedBAOAB(1.0, 0.3)
    state, scaled = plain.init(start), tuned.init(start * SCALE)
    scaled = scaled._replace(scale=SCALE.expand(2, 3).clone())
    for k in range(1, 50):
        noise = torch.randn(2, 3, dtype=torch.float64, generator=generator)
        numbers = StepNumbers(0.08 / k**0.5, 2.0)
        constant = StepNumbers(0.08, 2.0)
        state = plain.step(state, force(state.position), noise, constant)
        # A gradient of x = s z is that of z over s.
        gradient = force(scaled.position / SCALE) / SCALE
        scaled = tuned.step(scaled, gradient, noise, constant)
        torch.testing.assert_close(scaled.position / SCALE, state.position, rtol=1e-10, atol=1e-10)
        momentum = scaled.momentum * math.sqrt(0.08)
        torch.testing.assert_close(momentum, state.momentum, rtol=1e-10, atol=1e-10)
        heat = plain.statistics(state, state, constant)["kinetic_temperature"]
        statistics = tuned.statistics(scaled, scaled, numbers)
        torch.testing.assert_close(statistics["kinetic_temperature"], heat)
        assert statistics["step_size"].tolist() == pytest.approx([0.08 / k**0.5] * 2)


def test_the_step_size_in_the_state_is_a_factor_of_the_schedule():
    position = torch.tensor([1.0, -2.0], dtype=torch.float64)
    tuned, noise = TunedBAOAB(), torch.tensor([0.3, 2.0], dtype=torch.float64)
    state = tuned.init(position)
    one = state._replace(step_size=torch.full_like(state.step_size, 0.1))
    expected = tuned.step(state, force(position), noise, StepNumbers(0.05, 2.0))
    found = tuned.step(one, force(position), noise, StepNumbers(0.5, 2.0))
    torch.testing.assert_close(found.position, expected.position)


def test_settings_that_are_given_are_not_tuned():
    assert TunedBAOAB().tuned == ("step_size", "friction", "scale")
    assert TunedBAOAB(friction=0.2).tuned == ("step_size", "scale")
    assert TunedBAOAB(Polynomial(0.1), 0.2, 3.0).tuned == ()
    state = TunedBAOAB(friction=0.2, scale=3.0).init(torch.zeros(2))
    assert state.friction.item() == pytest.approx(0.2) and state.scale.tolist() == [3.0, 3.0]
    assert "step_size='auto'" in repr(TunedBAOAB(friction=0.2))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"friction": 0.0}, ValueError, r"friction is 0.0, expected a number in \(0, inf\]"),
        ({"friction": "low"}, TypeError, "friction is 'low', expected"),
        ({"scale": -1.0}, ValueError, "scale is -1.0, expected a finite number > 0"),
        ({"step_size": "fast"}, TypeError, "step_size is 'fast', expected a number or a schedule"),
    ],
)
def test_other_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        TunedBAOAB(**options)
