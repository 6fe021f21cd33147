# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Three-point noise on Gaussian targets. SGLD and SGHMC are linear in the noise there, so that the
first and second moments of their stationary laws depend only on those of the noise: with steps of
any size they are those of ``test_stationary_law.py``, in closed form. The third to fifth moments of
the noise are those of a normal number, and so are the third to fifth moments of the laws and the
standard errors of sample covariances.
"""

import math

import numpy as np
import pytest
import torch
from pyro.infer import MCMC
from test_stationary_law import (
    CHAINS,
    CURVATURE,
    H,
    M,
    assert_kernel_moments,
    assert_moments,
    gradient_variance,
    make_data,
    normal_means,
    posterior_mean,
    sgld_covariance,
)

from pyro_aeb import SGHMC, SGLD, AEBKernel
from pyro_aeb.kernel.noise import Noise
from pyro_aeb.kernel.random_bits import three_point_table
from pyro_aeb.testing import (
    assert_agrees,
    assert_tells_apart,
    sghmc_covariance,
    sgld_variance,
)
from pyro_aeb.testing import target_variance as limit_variance
from pyro_aeb.transitions import StepNumbers

THREE_POINT, NORMAL = "three-point", "normal"


def last_states(transition, tau, steps, kind, seed):
    """Return the states of independent chains with ``kind`` noise, tensors of shape (CHAINS, 3)."""
    position = (M + 3.0).expand(CHAINS, 3).reshape(-1)
    h, m = H.repeat(CHAINS), M.repeat(CHAINS)
    noise = Noise(kind, position, [torch.Generator().manual_seed(seed)])
    state = transition.init(position)
    numbers = StepNumbers(transition.step_size(1), tau)
    for _ in range(steps):
        state = transition.step(state, -h * (state.position - m), noise.draw(), numbers)
    return [values.view(CHAINS, 3) for values in state]


def assert_law(states, j, covariance):
    """Compare the moments of coordinate j of the states with the closed form."""
    samples = torch.stack([values[:, j] for values in reversed(states)], dim=1).numpy()
    mean = np.zeros(len(states))
    mean[-1] = M[j]
    return assert_moments(samples, mean, covariance)


@pytest.mark.parametrize("tau", [1.0, 8.0])
def test_sgld_has_the_variance_that_normal_noise_gives(tau):
    step_size = 0.2  # epsilon h = 0.1, 0.2 and 0.8; 0.9^200 of the start is left: 7e-10
    three = last_states(SGLD(step_size), tau, 200, THREE_POINT, seed=3)
    normal = last_states(SGLD(step_size), tau, 200, NORMAL, seed=4)
    for j, h in enumerate(H.tolist()):
        covariance = sgld_covariance(step_size, tau, h)
        found, error = assert_law(three, j, covariance)
        other, _ = assert_law(normal, j, covariance)
        assert_agrees(found, other, math.sqrt(2.0) * error)
        assert_tells_apart(found, limit_variance(tau, h), error)


@pytest.mark.parametrize(("friction", "b", "tau"), [(0.3, 0.0, 1.0), (0.6, 0.3, 8.0)])
def test_sghmc_has_the_covariance_that_normal_noise_gives(friction, b, tau):
    # eta h = 0.2, 0.4, 1.6. The spectral radius of M is at most 0.84, and 0.84^150 is 4e-12.
    step_size = 0.4
    three = last_states(SGHMC(step_size, friction, b), tau, 150, THREE_POINT, seed=5)
    normal = last_states(SGHMC(step_size, friction, b), tau, 150, NORMAL, seed=6)
    for j, h in enumerate(H.tolist()):
        covariance = sghmc_covariance(step_size, tau, h, friction, b)
        found, error = assert_law(three, j, covariance)
        other, _ = assert_law(normal, j, covariance)
        assert_agrees(found, other, math.sqrt(2.0) * error)
        assert_tells_apart(found, limit_variance(tau, h) * (1.0 - b / friction), error)


def test_fourth_moments_are_those_of_a_normal_law_too():
    # A step with epsilon h = 1 forgets its start: the law is the noise's, times sqrt(2 / tau).
    generator = torch.Generator().manual_seed(7)
    start = torch.full((CHAINS,), 3.0, dtype=torch.float64)
    noise = Noise(THREE_POINT, start, [generator])
    state = SGLD(1.0).step(SGLD(1.0).init(start), -start, noise.draw(), StepNumbers(1.0, 2.0))
    fourth = state.position.pow(4)
    eighth = sum(value**8 for value in three_point_table()) / 256
    error = math.sqrt((eighth - 3.0**2) / CHAINS)
    assert_agrees(fourth.mean(), 3.0, error)


# -- AEBKernel under Pyro's own MCMC


@pytest.fixture
def data():
    return make_data()


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("name", ["SGLD", "SGHMC"])
def test_under_mcmc(data, name, batch, compile):
    tau, friction = 2.0, 0.7
    gradient_noise = 0.0 if batch is None else gradient_variance(batch)
    if name == "SGLD":
        step_size = 0.6 / CURVATURE
        transition = SGLD(step_size)
        variance = sgld_variance(step_size, tau, CURVATURE, gradient_noise)
    else:
        step_size = 0.4 / CURVATURE
        transition = SGHMC(step_size, friction)
        variance = sghmc_covariance(step_size, tau, CURVATURE, friction, 0.0, gradient_noise)[1, 1]
    kernel = AEBKernel(
        normal_means,
        transition,
        inverse_temperature=tau,
        minibatches="replacement",
        noise="three-point",
        seed=5,
        compile=compile,
    )
    mcmc = MCMC(kernel, num_samples=2000, warmup_steps=100, disable_progbar=True)
    mcmc.run(data, batch)
    draws = mcmc.get_samples()["mu"].numpy()
    mean = posterior_mean(data, 5.0).numpy()
    estimate, error = assert_kernel_moments(draws, mean, variance)
    assert_tells_apart(estimate, limit_variance(tau, CURVATURE), error)
