# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 3. With an orthogonal design quadrature computes the limit theta* of the latents, see
``pyro_aeb.testing.orthogonal_design``; the adaptive chain converges to it, at the rate of the
theorem,

    E ||theta_k - theta*||^2 <= lambda omega_k:

the slope of log E ||theta_k - theta*||^2 against log omega_k is 1. As controls, with constant omega
the error stays of that order, and omega = 1, which is EM, does not converge.

The step of SGLD is large and fixed, since a fast chain needs far fewer steps. Its limit is then
theta*_eps, that of the chain with steps of this size, which tends to the theta* of the theorem as
steps shrink. The two are far enough apart for the tests to distinguish them.

With alpha = 1 the weight omega_k = C / (A + k)^alpha needs a gain C L > 1/2, where -L is the
largest real part among the eigenvalues of dh/dtheta at theta*; otherwise the error decays like
k^(-C L). With alpha < 1 any C will do.
"""

import functools
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value
from ssgl_references import prior_gradient

from pyro_aeb import SGLD, SSGL, AEBKernel, Constant, Polynomial, StochasticApproximation
from pyro_aeb.adaptation.latent_values import SpikeAndSlabLatents
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.structure import Residuals
from pyro_aeb.testing import OrthogonalDesign, assert_agrees, replicates
from pyro_aeb.testing.monte_carlo import Z
from pyro_aeb.transitions import StepNumbers

# Three weights: one clearly in the model, one hardly, one between. Sigma is in the prior alone.
PRIOR_ONLY = OrthogonalDesign(
    b=np.array([1.0, 0.35, -0.15]),
    rss=20.0,
    size=20,
    v0=0.2,
    v1=4.0,
    beta=(3.0, 3.0),
    nu=4.0,
    nu_lambda=4.0,
    tau=2.0,
    noise=1.0,
)
# Two weights, as I and B are those of different steps: a grid of four dimensions.
REGRESSION = replace(PRIOR_ONLY, b=np.array([0.6, -0.2]), rss=16.0, tau=1.0, noise=None, nodes=24)
DESIGNS = {"sigma in the prior": PRIOR_ONLY, "sigma in the noise too": REGRESSION}

DECREASING = {"alpha = 3/4": Polynomial(2.0, 10.0, 0.75), "alpha = 1": Polynomial(10.0, 20.0)}
REPLICATES, GROUPS = 1000, 40
CHECKPOINTS = (256, 512, 1024, 2048, 4096, 8192)


def model(design, x, y):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(design.nu / 2, design.nu_lambda / 2))
    delta = pyro.sample("delta", dist.Beta(*design.beta))
    with pyro.plate("features", design.p):
        beta = pyro.sample("beta", SSGL(design.v0, design.v1, delta, sigma2.sqrt()))
    noise = sigma2.sqrt() if design.noise is None else design.noise
    with pyro.plate("data", design.size):
        pyro.sample("y", dist.Normal(x @ beta, noise), obs=y)


def design_tensors(design):
    return tuple(map(torch.from_numpy, design.data(seed=0)))


@functools.cache
def step_size(name):
    """Return the step size with epsilon h = 1/2 at the limit, h the curvature of the likelihood."""
    design = DESIGNS[name]
    sigma = design.limit()[-2]
    return 0.5 * (design.noise or sigma) ** 2 / design.size


@functools.cache
def true_limit(name):
    """Return theta*_eps, shape (2 p + 2,)."""
    return DESIGNS[name].limit(step_size(name))


@functools.cache
def adaptive_chains(name, omega, checkpoints=CHECKPOINTS, count=REPLICATES):
    """
    Independent chains of Algorithm 1 side by side.

    :returns: theta at the checkpoints, shape (checkpoints, count, 2 p + 2), and the weights
        after the last step, shape (count, p).
    """
    torch.set_default_dtype(torch.float64)
    design, (x, y) = DESIGNS[name], design_tensors(DESIGNS[name])
    rule = SpikeAndSlabRule(inspect_model(model, (design, x, y), {}, adapt=True))
    transition, numbers = SGLD(step_size(name)), StepNumbers(step_size(name), design.tau)
    generator = torch.Generator().manual_seed(1)
    first = {"sigma2": torch.tensor(1.0), "delta": torch.tensor(0.5)}
    rho, slab, excess, sigma, delta = rule.init(first, StochasticApproximation(0.5))
    rho, slab, sigma, delta = (v.expand(count, -1) for v in (rho, slab, sigma, delta))
    latents = SpikeAndSlabLatents(rho, slab, excess, sigma, delta)
    state = transition.init(torch.from_numpy(design.b).expand(count, -1))
    thetas, noise = [], torch.empty(count, design.p)
    for k in range(1, checkpoints[-1] + 1):
        error = y - state.position @ x.T
        variance = latents.sigma.square() if design.noise is None else design.noise**2
        gradient = error @ x / variance + prior_gradient(rule, latents, state.position)
        residuals = {"y": Residuals(error.square().sum(-1), float(design.size))}
        noise.normal_(generator=generator)
        state = transition.step(state, gradient, noise, numbers)
        latents = rule.update(latents, state.position, residuals, omega(k))
        if k in checkpoints:
            rho, slab, _, sigma, delta = latents
            thetas.append(torch.cat([rho, slab, sigma, delta], -1).numpy())
    return np.stack(thetas), state.position.numpy()


def squared_error(name, thetas):
    """Return ||theta_k - theta*_eps||^2 of every chain, shape (checkpoints, count)."""
    return ((thetas - true_limit(name)) ** 2).sum(-1)


def slopes(weights, errors):
    """Return the slope of log mean squared error against log omega, of every replicate group."""
    groups = errors.reshape(len(errors), GROUPS, -1).mean(-1)
    return np.polyfit(np.log(weights), np.log(groups), 1)[0]


def assert_slope_one(found):
    """Require that the slope, within Z standard errors, is within 0.25 of 1."""
    slope, error = replicates(found)
    assert abs(slope - 1.0) + Z * error < 0.25, (slope, error)


# -- the truth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_the_design_is_orthogonal_and_the_sum_of_squares_splits(name):
    design, (x, y) = DESIGNS[name], DESIGNS[name].data(seed=0)
    np.testing.assert_allclose(x.T @ x, design.size * np.eye(design.p), atol=1e-12)
    beta = np.linspace(-1, 1, design.p)
    total = design.rss + design.size * ((beta - design.b) ** 2).sum()
    np.testing.assert_allclose(((y - x @ beta) ** 2).sum(), total, rtol=1e-12)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_quadrature_has_converged(name):
    # The Monte Carlo errors below are of the order of 1e-3.
    design = DESIGNS[name]
    assert np.abs(design.mean_field(true_limit(name), step_size(name))).max() < 1e-9
    coarse = replace(design, nodes=design.nodes * 2 // 3).limit(step_size(name))
    assert np.abs(coarse - true_limit(name)).max() < 1e-5


def test_small_steps_lead_to_the_limit_of_the_theorem():
    # theta*_eps = theta* + c eps + O(eps^2): two codes, that of the transition density and that of
    # exp(tau Q), meet where eps is extrapolated to 0. So their distance falls with every halving of
    # eps by 2, and that of the extrapolated 2 theta*_(eps/2) - theta*_eps by 4.
    design = replace(PRIOR_ONLY, nodes=64)
    limit = design.limit()
    near = [design.limit(eps / design.size) for eps in (0.2, 0.1, 0.05)]
    distance = [np.linalg.norm(theta - limit) for theta in near]
    assert distance[0] / distance[1] == pytest.approx(2.0, rel=0.15)
    assert distance[1] / distance[2] == pytest.approx(2.0, rel=0.08)
    extrapolated = [np.linalg.norm(2 * b - a - limit) for a, b in zip(near, near[1:], strict=False)]
    assert extrapolated[0] / extrapolated[1] == pytest.approx(4.0, rel=0.25)
    assert extrapolated[1] < distance[1] / 20


@pytest.mark.parametrize("name", DESIGNS)
def test_the_limit_attracts_and_the_gain_suffices(name):
    eigenvalues = np.linalg.eigvals(DESIGNS[name].jacobian(true_limit(name), step_size(name)))
    assert eigenvalues.real.max() < 0.0
    assert DECREASING["alpha = 1"].scale * -eigenvalues.real.max() > 0.5


# -- the chain -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gain", DECREASING)
@pytest.mark.parametrize("name", DESIGNS)
def test_the_adaptive_chain_reaches_the_limit(name, gain):
    thetas, _ = adaptive_chains(name, DECREASING[gain])
    mean, error = replicates(thetas[-1])
    assert_agrees(mean, true_limit(name), error)
    # It is not the limit for small steps, with which a test of less power would agree, too.
    assert np.abs((mean - DESIGNS[name].limit()) / error).max() > 10 * Z


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_the_weights_reach_their_law_at_the_limit(name):
    # beta_k => its stationary law at theta*_eps: mean, mean of |beta| and of beta^2.
    _, beta = adaptive_chains(name, DECREASING["alpha = 1"])
    for j in range(DESIGNS[name].p):
        law = DESIGNS[name].law(j, true_limit(name), step_size(name))
        for function in (np.asarray, np.abs, np.square):
            mean, error = replicates(function(beta[:, j]))
            assert_agrees(mean, law.one @ function(law.nodes), error)


@pytest.mark.slow
@pytest.mark.parametrize("gain", DECREASING)
@pytest.mark.parametrize("name", DESIGNS)
def test_the_rate_is_that_of_the_theorem(name, gain):
    omega = DECREASING[gain]
    thetas, _ = adaptive_chains(name, omega)
    weights = [omega(k) for k in CHECKPOINTS]
    assert_slope_one(slopes(weights, squared_error(name, thetas)))


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_a_constant_weight_comes_to_a_halt_at_a_distance_of_its_order(name):
    checkpoints, weights, errors = (1000, 2000), [0.1, 0.05, 0.025], []
    for weight in weights:
        thetas, _ = adaptive_chains(name, Constant(weight), checkpoints)
        error = squared_error(name, thetas)
        # Twice as many steps change nothing: the difference, chain by chain, is 0.
        difference, standard_error = replicates(error[1] - error[0])
        assert_agrees(difference, 0.0, standard_error)
        errors.append(error[1])
    assert_slope_one(slopes(weights, np.stack(errors)))


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_em_does_not_converge(name):
    thetas, _ = adaptive_chains(name, Constant(1.0), (1000, 2000))
    error = squared_error(name, thetas)
    difference, standard_error = replicates(error[1] - error[0])
    assert_agrees(difference, 0.0, standard_error)
    # The latents follow the last draw, so their variance is that of theta~, as if lambda omega_k
    # with omega = 1. After 2048 steps the decreasing weight is 1/150.
    final, standard_error = replicates(error[1])
    decreasing, _ = adaptive_chains(name, DECREASING["alpha = 3/4"])
    at_2048, _ = replicates(squared_error(name, decreasing)[CHECKPOINTS.index(2048)])
    assert final - Z * standard_error > 50 * at_2048


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_the_kernel_under_mcmc_is_one_of_these_chains(name, compile):
    torch.set_default_dtype(torch.float64)
    design, (x, y) = DESIGNS[name], design_tensors(DESIGNS[name])
    first = {"sigma2": torch.ones(()), "delta": torch.tensor(0.5), "beta": torch.zeros(design.p)}
    kernel = AEBKernel(
        model,
        SGLD(step_size(name)),
        StochasticApproximation(DECREASING["alpha = 3/4"]),
        inverse_temperature=design.tau,
        steps_per_draw=2048,
        init_strategy=init_to_value(values=first),
        seed=2,
        compile=compile,
    )
    mcmc = MCMC(kernel, num_samples=1, warmup_steps=0, disable_progbar=True)
    mcmc.run(design, x, y)
    rho, slab, _, sigma, delta = kernel.latents
    theta = torch.cat([rho, slab, sigma, delta]).numpy()
    thetas, _ = adaptive_chains(name, DECREASING["alpha = 3/4"])
    others = thetas[CHECKPOINTS.index(2048)]
    assert_agrees(theta, others.mean(0), others.std(0))
    assert mcmc.get_samples()["sigma2"] == sigma.square()
