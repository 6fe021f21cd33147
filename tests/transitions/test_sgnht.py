# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The thermostat, term by term, and its stationary law."""

import math
import re

import pytest
import torch
from scipy.optimize import brentq

from pyro_aeb.testing import assert_agrees, assert_tells_apart, replicates
from pyro_aeb.transitions import BAOAB, SGNHT, BAOABState, SGNHTState, StepNumbers

position = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
momentum = torch.tensor([0.1, 0.2, -3.0], dtype=torch.float64)
gradient = torch.tensor([0.3, 0.0, -4.0], dtype=torch.float64)
noise = torch.tensor([-1.0, 2.0, 0.25], dtype=torch.float64)
friction = torch.tensor([0.7], dtype=torch.float64)


def test_a_step_is_the_six_lines_of_its_docstring():
    eta, tau, alpha, gamma = 0.08, 2.0, 0.3, 0.05
    state = SGNHT(1.0, alpha, gamma).step(
        SGNHTState(position, momentum, friction), gradient, noise, StepNumbers(eta, tau)
    )
    v = momentum + eta * gradient
    x = position + v / 2
    xi = 0.7 + gamma / 2 * (tau * float(v.square().mean()) / eta - 1)
    spread = math.sqrt(alpha / xi * (1 - math.exp(-2 * xi)) * eta / tau)
    v = math.exp(-xi) * v + spread * noise
    x = x + v / 2
    xi = xi + gamma / 2 * (tau * float(v.square().mean()) / eta - 1)
    torch.testing.assert_close(state.position, x, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(state.momentum, v, rtol=1e-13, atol=0.0)
    assert float(state.friction) == pytest.approx(xi, rel=1e-13)


def test_a_thermostat_that_hardly_moves_is_baoab():
    numbers = StepNumbers(0.08, 2.0)
    for alpha in (0.1, 1.0):
        ours = SGNHTState(position, momentum, friction * 0 + alpha)
        found = SGNHT(1.0, alpha, coupling=1e-300).step(ours, gradient, noise, numbers)
        state = BAOABState(position, momentum)
        expected = BAOAB(1.0, alpha).step(state, gradient, noise, numbers)
        torch.testing.assert_close(found.position, expected.position, rtol=1e-13, atol=0.0)
        torch.testing.assert_close(found.momentum, expected.momentum, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("at", [-0.5, 0.0, 1e-12])
def test_a_friction_of_zero_or_less_is_no_trouble(at):
    # (1 - exp(-2 xi)) / xi tends to 2 and is positive on both sides.
    still, zero = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64) + at
    state = SGNHTState(still + 1.0, still + math.sqrt(0.04), zero)  # at its temperature: no change
    after = SGNHT(1.0, 0.3, coupling=1e-300).step(state, still, still + 1.0, StepNumbers(0.08, 2.0))
    factor = 2.0 if at == 0.0 else -math.expm1(-2 * at) / at
    spread = math.sqrt(0.3 * factor * 0.04)
    expected = math.exp(-at) * math.sqrt(0.04) + spread
    assert float(after.momentum) == pytest.approx(expected, rel=1e-12)


def test_weights_that_pruning_holds_at_zero_do_not_count():
    held = torch.cat([position, torch.zeros(5, dtype=torch.float64)])
    wide = SGNHTState(held, torch.cat([momentum, torch.zeros(5).double()]), friction)
    pad = torch.ones(5, dtype=torch.float64)
    numbers = StepNumbers(0.08, 2.0)
    found = SGNHT(1.0).step(wide, torch.cat([gradient, pad]), torch.cat([noise, pad]), numbers)
    narrow = SGNHTState(position, momentum, friction)
    expected = SGNHT(1.0).step(narrow, gradient, noise, numbers)
    torch.testing.assert_close(found.friction, expected.friction, rtol=1e-13, atol=0.0)


def test_the_friction_removes_the_heat_of_unknown_noise():
    """
    Forty chains of 100 weights at curvature 1, with noise of variance g in the gradient. Of the
    momentum's energy the kick adds eta^2 g, and the friction has to take it off again:
    (xi - alpha) tanh(xi) / xi = eta tau g / 2 holds its mean over the two lines of xi.
    """
    eta, tau, g, alpha = 0.01, 1.0, 20.0, 0.1
    excess = eta * tau * g / 2
    expected = brentq(lambda xi: (xi - alpha) * math.tanh(xi) / xi - excess, alpha, 1.0)
    assert expected == pytest.approx(alpha + excess, rel=0.02)  # as the docstring says

    generator = torch.Generator().manual_seed(1)
    start = torch.randn(40, 100, generator=generator, dtype=torch.float64)
    found = {}
    for transition in (SGNHT(eta, alpha), BAOAB(eta, alpha)):
        state, square, xi = transition.init(start), 0.0, 0.0
        for k in range(4000):
            z, e = torch.randn(2, 40, 100, generator=generator, dtype=torch.float64)
            noisy = -state.position + math.sqrt(g) * e
            state = transition.step(state, noisy, z, StepNumbers(eta, tau))
            if k >= 1000:
                square = square + state.position.square().mean(-1) / 3000
                xi = xi + getattr(state, "friction", torch.zeros(40, 1))[:, 0] / 3000
        found[type(transition)] = replicates(square), replicates(xi)
    (variance, error), (mean, error_of_mean) = found[SGNHT]
    assert_agrees(mean, expected, error_of_mean)
    assert abs(variance - 1.0) < eta + 5 * error  # its own bias is of the order of eta h
    (variance, error), _ = found[BAOAB]  # the same without a thermostat is twice as hot
    assert_tells_apart(variance, 1.0, error)
    assert variance > 1.8


@pytest.mark.parametrize("name", ["friction", "coupling"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_what_is_not_positive_is_refused(name, value):
    message = f"SGNHT: {name} is {value}, expected a finite number > 0"
    with pytest.raises(ValueError, match=re.escape(message)):
        SGNHT(0.1, **{name: value})
