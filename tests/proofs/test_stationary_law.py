# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 2. Latents frozen, Gaussian target: the stationary law of the chain as it is, with its steps
of finite size, is Gaussian (or has known second moments) and is computed below in closed form, from
equations (3a) and (3b) alone. Step sizes are large, so that the law of the continuous-time limit,
exp(tau Q) itself, is far from it, and the tests show that they would notice.

Q = -h (beta - m)^2 / 2 in every coordinate: its gradient is -h (beta - m).

SGLD is beta' - m = (1 - epsilon h) (beta - m) + noise of variance s^2 = 2 epsilon / tau, an AR(1)
process of stationary variance s^2 / (1 - (1 - epsilon h)^2) = 1 / (tau h (1 - epsilon h / 2)).

SGHMC with x = (v, beta - m) is x' = M x + noise (1, 1), as beta' = beta + v':

    M = | 1 - alpha   -eta h     |    cov = M cov M^T + s^2 | 1 1 |    s^2 = 2 eta (alpha - b) / tau
        | 1 - alpha   1 - eta h  |                          | 1 1 |

with b = beta hat. Noise in the gradient itself, of variance G, adds epsilon^2 G or eta^2 G to s^2.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC

from pyro_aeb import SGHMC, SGLD, SSGL, AEBKernel, StochasticApproximation
from pyro_aeb.testing import (
    assert_agrees,
    assert_tells_apart,
    batch_means,
    sghmc_covariance,
    sgld_variance,
)
from pyro_aeb.testing import target_variance as limit_variance
from pyro_aeb.transitions import StepNumbers

CHAINS = 40_000


def sgld_covariance(step_size, tau, h, gradient_noise=0.0):
    return np.array([[sgld_variance(step_size, tau, h, gradient_noise)]])


def test_the_closed_forms():
    # They tend to the target for small steps ...
    for tau, h in ((1.0, 2.0), (0.5, 3.0)):
        small = sghmc_covariance(1e-8, tau, h, 0.3)
        np.testing.assert_allclose(small[1, 1], limit_variance(tau, h), rtol=1e-6)
        np.testing.assert_allclose(sgld_variance(1e-8, tau, h), limit_variance(tau, h), rtol=1e-6)
    # ... are each other's with friction 1, where SGHMC is SGLD ...
    full = sghmc_covariance(0.1, 0.5, 3.0, 1.0)[1, 1]
    np.testing.assert_allclose(full, sgld_variance(0.1, 0.5, 3.0), rtol=1e-12)
    # ... and that of SGHMC's position, as the AR(2) process beta'' = (2 - alpha - eta h) beta' -
    # (1 - alpha) beta + noise, is (1 - b / alpha) / (tau h (1 - eta h / (4 - 2 alpha))).
    ar2 = (1 - 0.1 / 0.3) / (0.5 * 3.0 * (1 - 0.2 * 3.0 / (4 - 2 * 0.3)))
    found = sghmc_covariance(0.2, 0.5, 3.0, 0.3, 0.1)[1, 1]
    np.testing.assert_allclose(found, ar2, rtol=1e-12)


# -- the transitions alone, on many independent chains ---------------------------------------------

H = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
M = torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64)


def last_states(transition, step_size, tau, steps):
    """Return the states of independent chains after some steps, tensors of shape (CHAINS, 3)."""
    generator = torch.Generator().manual_seed(3)
    numbers = StepNumbers(step_size, tau)
    state = transition.init((M + 3.0).expand(CHAINS, 3).clone())
    noise = torch.empty_like(state.position)
    for _ in range(steps):
        gradient = -H * (state.position - M)
        state = transition.step(state, gradient, noise.normal_(generator=generator), numbers)
    return state


def assert_moments(samples, mean, covariance):
    """
    Compares independent samples of a Gaussian vector, shape (C, d), with its moments. Of C samples
    the mean has variance c_ii / C and the sample covariance (c_ii c_jj + c_ij^2) / C.
    """
    diagonal = np.diag(covariance)
    assert_agrees(samples.mean(0), mean, np.sqrt(diagonal / len(samples)))
    error = np.sqrt((np.outer(diagonal, diagonal) + covariance**2) / len(samples))
    found = np.cov(samples.T).reshape(covariance.shape)
    assert_agrees(found, covariance, error)
    return found[-1, -1], error[-1, -1]


@pytest.mark.parametrize("tau", [1.0, 0.25, 8.0])
def test_sgld_has_the_variance_of_the_discretised_chain(tau):
    step_size = 0.2  # epsilon h = 0.1, 0.2 and 0.8; 0.9^200 of the start is left: 7e-10
    state = last_states(SGLD(step_size), step_size, tau, steps=200)
    for j, h in enumerate(H.tolist()):
        found, error = assert_moments(
            state.position[:, j : j + 1].numpy(),
            M[j].numpy(),
            sgld_covariance(step_size, tau, h),
        )
        assert_tells_apart(found, limit_variance(tau, h), error)


@pytest.mark.parametrize(
    ("friction", "b", "tau"), [(0.3, 0.0, 1.0), (0.3, 0.1, 0.25), (0.6, 0.3, 8.0), (1.0, 0.2, 1.0)]
)
def test_sghmc_has_the_covariance_of_the_discretised_chain(friction, b, tau):
    # eta h = 0.2, 0.4, 1.6. The spectral radius of M is at most 0.84, and 0.84^150 is 4e-12.
    step_size = 0.4
    state = last_states(SGHMC(step_size, friction, b), step_size, tau, steps=150)
    for j, h in enumerate(H.tolist()):
        covariance = sghmc_covariance(step_size, tau, h, friction, b)
        found, error = assert_moments(
            torch.stack([state.momentum[:, j], state.position[:, j]], dim=1).numpy(),
            [0.0, M[j]],
            covariance,
        )
        # Neither the variance of exp(tau Q) nor, with b > 0, that without the omitted noise fits.
        assert_tells_apart(found, limit_variance(tau, h) * (1.0 - b / friction), error)
        if b > 0.0:
            without = sghmc_covariance(step_size, tau, h, friction)[1, 1]
            assert_tells_apart(found, without, error)


# -- AEBKernel under Pyro's own MCMC ---------------------------------------------------------------

N, D = 20, 40


def make_data():
    """Generate N rows and D columns with means 0.1 j and standard deviations of exactly 1."""
    torch.set_default_dtype(torch.float64)
    y = torch.randn(N, D)
    y = (y - y.mean(0)) / y.std(0, correction=0)
    return y + 0.1 * torch.arange(D)


@pytest.fixture
def data():
    return make_data()


def normal_means(y, batch=None):
    """y ~ N(mu, 0.9^2) and mu ~ N(5, 1.5^2): a Gaussian posterior with equal coordinates."""
    with pyro.plate("columns", D):
        mu = pyro.sample("mu", dist.Normal(5.0, 1.5))
    with pyro.plate("data", N, subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(mu, 0.9).to_event(1), obs=y[i])


def sparse_means(y, batch=None):
    """The same with an SSGL prior, whose Gaussian component has variance sigma^2 v1 = 1.5^2."""
    with pyro.plate("columns", D):
        mu = pyro.sample("mu", SSGL(v0=0.1, v1=9.0, delta=0.5, sigma=0.5))
    with pyro.plate("data", N, subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(mu, 0.9).to_event(1), obs=y[i])


# With rho = 1 frozen, equation (5) gives kappa0 = 0 and kappa1 = 1/v1: the prior is the Gaussian
# component alone, centred at 0.
MODELS = {
    "normal prior": (normal_means, None, 5.0),
    "frozen SSGL": (sparse_means, StochasticApproximation(0.0, initial_inclusion=1.0), 0.0),
}
CURVATURE = N / 0.9**2 + 1 / 1.5**2


def gradient_variance(n):
    """
    G, the variance of (N/n) sum_{i in batch} (y_i - mu) / 0.9^2 over batches of n independent draws
    from N data of variance 1: (N/n)^2 n 1 / 0.9^4, whatever mu is.
    """
    return N**2 / n / 0.9**4


def posterior_mean(y, prior_mean):
    return (y.sum(0) / 0.9**2 + prior_mean / 1.5**2) / CURVATURE


def run_mcmc(model, transition, data, batch, tau, adaptation=None, draws=2000, compile=False):
    kernel = AEBKernel(
        model,
        transition,
        adaptation=adaptation,
        inverse_temperature=tau,
        minibatches="replacement",
        seed=5,
        compile=compile,
    )
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=100, disable_progbar=True)
    mcmc.run(data, batch)
    return mcmc.get_samples()["mu"].numpy()


def assert_kernel_moments(draws, mean, variance):
    """
    Compares a run's draws, shape (draws, D), with the mean (D,) and the variance of every
    coordinate. The standard error is that of batch means of 50 draws: the chains below remember at
    most 0.89^50 = 0.003 of where they were so long ago.
    """
    estimate, error = batch_means(draws)
    assert_agrees(estimate, mean, error)
    estimate, error = batch_means(((draws - mean) ** 2).mean(1))
    assert_agrees(estimate, variance, error)
    return estimate, error


@pytest.mark.parametrize("name", MODELS)
def test_sgld_under_mcmc(data, name, compile):
    model, adaptation, prior_mean = MODELS[name]
    step_size, tau = 0.6 / CURVATURE, 2.0
    draws = run_mcmc(model, SGLD(step_size), data, None, tau, adaptation, compile=compile)
    variance = sgld_variance(step_size, tau, CURVATURE)
    mean = posterior_mean(data, prior_mean).numpy()
    estimate, error = assert_kernel_moments(draws, mean, variance)
    assert_tells_apart(estimate, limit_variance(tau, CURVATURE), error)


@pytest.mark.parametrize("batch", [1, 5])
def test_sgld_under_mcmc_with_minibatches(data, batch):
    step_size, tau = 0.6 / CURVATURE, 2.0
    draws = run_mcmc(normal_means, SGLD(step_size), data, batch, tau)
    variance = sgld_variance(step_size, tau, CURVATURE, gradient_variance(batch))
    estimate, error = assert_kernel_moments(draws, posterior_mean(data, 5.0).numpy(), variance)
    # The variance includes the noise of the batches.
    assert_tells_apart(estimate, sgld_variance(step_size, tau, CURVATURE), error)


@pytest.mark.parametrize("batch", [None, 5])
def test_sghmc_under_mcmc(data, batch, compile):
    step_size, tau, friction = 0.4 / CURVATURE, 2.0, 0.7
    draws = run_mcmc(normal_means, SGHMC(step_size, friction), data, batch, tau, compile=compile)
    noise = 0.0 if batch is None else gradient_variance(batch)
    variance = sghmc_covariance(step_size, tau, CURVATURE, friction, 0.0, noise)[1, 1]
    estimate, error = assert_kernel_moments(draws, posterior_mean(data, 5.0).numpy(), variance)
    assert_tells_apart(estimate, limit_variance(tau, CURVATURE), error)


def test_sghmc_makes_up_for_the_gradient_noise_that_it_is_told_of(data):
    # With beta hat = eta tau G / 2 the injected variance 2 eta (alpha - beta hat) / tau and the
    # batches' eta^2 G add up to 2 eta alpha / tau: the law is that of the whole data set.
    batch, tau, friction = 5, 2.0, 0.9
    step_size = 0.1 / CURVATURE
    estimate_of_noise = step_size * tau * gradient_variance(batch) / 2.0
    transition = SGHMC(step_size, friction, gradient_noise=estimate_of_noise)
    draws = run_mcmc(normal_means, transition, data, batch, tau)
    variance = sghmc_covariance(step_size, tau, CURVATURE, friction)[1, 1]
    mean = posterior_mean(data, 5.0).numpy()
    estimate, error = assert_kernel_moments(draws, mean, variance)
    noise = gradient_variance(batch)
    without = sghmc_covariance(step_size, tau, CURVATURE, friction, 0.0, noise)[1, 1]
    assert_tells_apart(estimate, without, error)
