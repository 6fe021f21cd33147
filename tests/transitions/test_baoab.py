# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""BAOAB, term by term, and why one gradient a step is enough."""

import math
import re

import numpy as np
import pytest
import torch

from pyro_aeb.testing import linear_scheme
from pyro_aeb.transitions import BAOAB, BAOABState, StepNumbers

position = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
momentum = torch.tensor([0.1, 0.2, -3.0], dtype=torch.float64)
gradient = torch.tensor([0.3, 0.0, -4.0], dtype=torch.float64)
noise = torch.tensor([-1.0, 2.0, 0.25], dtype=torch.float64)


def force(x):
    """Of a quartic Q, so that nothing is linear."""
    return -(x**3) - x


def test_a_step_is_kick_drift_noise_drift():
    eta, tau, alpha = 0.08, 2.0, math.log(2.0)  # a step keeps half of the momentum
    state = BAOAB(1.0, alpha).step(
        BAOABState(position, momentum), gradient, noise, StepNumbers(eta, tau)
    )
    kicked = momentum + 0.08 * gradient
    # sqrt((1 - 1/4) 0.08 / 2) = sqrt(0.03)
    after = kicked / 2 + math.sqrt(0.03) * noise
    torch.testing.assert_close(state.momentum, after, rtol=1e-14, atol=0.0)
    expected = position + kicked / 2 + after / 2
    torch.testing.assert_close(state.position, expected, rtol=1e-14, atol=0.0)


def test_positions_are_those_of_the_published_method_with_two_half_kicks():
    eta, tau, alpha = 0.05, 2.0, 0.3
    kept, spread = math.exp(-alpha), math.sqrt((1 - math.exp(-2 * alpha)) * eta / tau)
    generator = torch.Generator().manual_seed(0)
    x, v = position, momentum
    # The published method starts with half a kick, ours with a whole one.
    state = BAOABState(position, momentum - eta / 2 * force(position))
    for _ in range(50):
        z = torch.randn(3, dtype=torch.float64, generator=generator)
        v = v + eta / 2 * force(x)
        x = x + v / 2
        v = kept * v + spread * z
        x = x + v / 2
        v = v + eta / 2 * force(x)
        numbers = StepNumbers(eta, tau)
        state = BAOAB(1.0, alpha).step(state, force(state.position), z, numbers)
        torch.testing.assert_close(state.position, x, rtol=1e-12, atol=1e-12)
        v_ours = state.momentum + eta / 2 * force(state.position)
        torch.testing.assert_close(v_ours, v, rtol=1e-12, atol=1e-12)


def test_at_infinite_friction_it_is_the_method_with_averaged_noise():
    # Leimkuhler, Matthews, Tretyakov (2014): x' = x + e grad Q + sqrt(2 e / tau) (z + z') / 2, with
    # the noise z' of the step before and e = eta / 2.
    eta, tau = 0.1, 2.0
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(11, 3, dtype=torch.float64, generator=generator)
    spread = math.sqrt(eta / tau)
    state, x = BAOABState(position, spread * z[0]), position
    for before, now in zip(z[:-1], z[1:], strict=True):
        numbers = StepNumbers(eta, tau)
        state = BAOAB(1.0, math.inf).step(state, force(state.position), now, numbers)
        x = x + eta / 2 * force(x) + spread * (before + now) / 2
        torch.testing.assert_close(state.position, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("friction", [0.05, 1.0, math.inf])
@pytest.mark.parametrize("eta", [0.01, 1.0, 3.9])  # times curvature 1; stable below 4
def test_positions_of_a_gaussian_are_exact_at_any_stable_step_size(eta, friction):
    tau, one = 2.0, np.eye(1)
    scheme = linear_scheme(BAOAB(1.0, friction), one, np.zeros(1), StepNumbers(eta, tau))
    np.testing.assert_allclose(scheme.position_covariance(), one / tau, rtol=1e-9)


@pytest.mark.parametrize("friction", [0.1, 1.0])
def test_gradient_noise_widens_the_law_as_documented(friction):
    eta, tau, g, one = 1e-4, 2.0, 50.0, np.eye(1)
    scheme = linear_scheme(BAOAB(1.0, friction), one, np.zeros(1), StepNumbers(eta, tau))
    excess = tau * scheme.position_covariance(g)[0, 0] - 1.0
    np.testing.assert_allclose(excess, eta * tau * g / (4 * math.tanh(friction / 2)), rtol=1e-2)


@pytest.mark.parametrize("eta", [0.01, 1.0, 3.9])
def test_the_kinetic_temperature_of_a_gaussian_is_one_at_any_step_size(eta):
    scheme = linear_scheme(BAOAB(1.0, 0.3), np.eye(1), np.zeros(1), StepNumbers(eta, 2.0))
    assert scheme.covariance()[1, 1] == pytest.approx(eta / 2.0, rel=1e-9)
    state = BAOABState(position, torch.full((3,), 0.2, dtype=torch.float64))
    figures = BAOAB(1.0).statistics(state, state, StepNumbers(0.08, 2.0))
    assert float(figures["kinetic_temperature"]) == pytest.approx(0.2**2 / 0.04)


@pytest.mark.parametrize("friction", [0.0, -0.1, math.nan, -math.inf])
def test_a_friction_that_is_not_positive_is_refused(friction):
    message = f"friction is {friction}, expected a number in (0, inf]; a step keeps exp(-friction)"
    with pytest.raises(ValueError, match=re.escape(message)):
        BAOAB(0.1, friction=friction)
