# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Equation (3b), term by term. Its stationary law is in ``proofs/test_stationary_law.py``."""

import math
import re

import pytest
import torch

from pyro_aeb.transitions import SGHMC, SGLD, SGHMCState, SGLDState, StepNumbers

position = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
momentum = torch.tensor([0.1, 0.2, -3.0], dtype=torch.float64)
gradient = torch.tensor([0.3, 0.0, -4.0], dtype=torch.float64)
noise = torch.tensor([-1.0, 2.0, 0.25], dtype=torch.float64)


def test_a_step_is_equation_3b():
    eta, tau = 0.08, 4.0
    transition = SGHMC(1.0, friction=0.3, gradient_noise=0.05)
    numbers = StepNumbers(eta, tau)
    state = transition.step(SGHMCState(position, momentum), gradient, noise, numbers)
    # v <- (1 - alpha) v + eta grad Q + N(0, 2 eta (alpha - beta hat) / tau), of standard deviation
    # sqrt(2 * 0.08 * 0.25 / 4) = 0.1; the position moves by the new momentum.
    v = 0.7 * momentum + 0.08 * gradient + 0.1 * noise
    torch.testing.assert_close(state.momentum, v, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(state.position, position + v, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("friction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_injected_noise_has_variance_two_eta_times_the_rest_of_the_friction(friction, share):
    zero = torch.zeros(1, dtype=torch.float64)
    transition = SGHMC(1.0, friction, gradient_noise=share * friction)
    for eta, tau in ((1e-12, 1.0), (1e-3, 0.5), (1.0, 1000.0)):
        numbers = StepNumbers(eta, tau)
        unit = transition.step(SGHMCState(zero, zero), zero, zero + 1.0, numbers).momentum
        variance = 2.0 * eta * (1.0 - share) * friction / tau
        assert math.isclose(float(unit) ** 2, variance, rel_tol=1e-12)


def test_with_friction_one_it_is_sgld():
    # (1 - alpha) v vanishes and beta moves by eta grad Q + N(0, 2 eta / tau): equation (3a).
    numbers = StepNumbers(0.08, 4.0)
    state = SGHMCState(position, momentum)
    after = SGHMC(1.0, friction=1.0).step(state, gradient, noise, numbers)
    plain = SGLD(1.0).step(SGLDState(position), gradient, noise, numbers)
    torch.testing.assert_close(after.position, plain.position, rtol=1e-14, atol=0.0)


def test_it_starts_at_rest():
    state = SGHMC(0.1).init(position)
    assert state._fields == ("position", "momentum")
    assert state.position is position and torch.equal(state.momentum, torch.zeros(3).double())


def test_defaults():
    assert SGHMC(0.1) == SGHMC(step_size=0.1, friction=0.1, gradient_noise=0.0)


@pytest.mark.parametrize("friction", [0.0, -0.1, 1.5, math.nan])
def test_a_friction_outside_0_1_is_refused(friction):
    message = f"friction is {friction}, expected a number in (0, 1]; friction = 1 - momentum"
    with pytest.raises(ValueError, match=re.escape(message)):
        SGHMC(0.1, friction=friction)


@pytest.mark.parametrize("estimate", [-0.01, 0.11, math.nan])
def test_a_gradient_noise_above_the_friction_is_refused(estimate):
    message = f"gradient_noise is {estimate}, expected a number in [0, 0.1]; noise has no negative"
    with pytest.raises(ValueError, match=re.escape(message)):
        SGHMC(0.1, friction=0.1, gradient_noise=estimate)
    assert SGHMC(0.1, friction=0.1, gradient_noise=0.1).gradient_noise == 0.1
