# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Equation (3a), term by term. Its stationary law is in ``proofs/test_stationary_law.py``."""

import math

import torch

from pyro_aeb.transitions import SGLD, SGLDState, StepNumbers

position = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
gradient = torch.tensor([0.3, 0.0, -4.0], dtype=torch.float64)
noise = torch.tensor([-1.0, 2.0, 0.25], dtype=torch.float64)


def test_a_step_is_equation_3a():
    epsilon, tau = 0.08, 4.0
    state = SGLD(1.0).step(SGLDState(position), gradient, noise, StepNumbers(epsilon, tau))
    # beta + epsilon grad Q + N(0, 2 epsilon / tau): the standard deviation is sqrt(0.16 / 4) = 0.2.
    expected = position + 0.08 * gradient + 0.2 * noise
    torch.testing.assert_close(state.position, expected, rtol=1e-14, atol=0.0)


def test_the_injected_noise_has_variance_two_epsilon_over_tau():
    zero = torch.zeros(1, dtype=torch.float64)
    for epsilon in (1e-12, 1e-3, 1.0):
        for tau in (0.5, 1.0, 1000.0):
            numbers = StepNumbers(epsilon, tau)
            unit = SGLD(1.0).step(SGLDState(zero), zero, zero + 1.0, numbers).position
            assert math.isclose(float(unit) ** 2, 2.0 * epsilon / tau, rel_tol=1e-12)


def test_there_is_no_memory_beyond_the_position():
    state = SGLD(0.1).init(position)
    assert state._fields == ("position",)
    assert state.position is position  # nothing is copied, and nothing is written to it
