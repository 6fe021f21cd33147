# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The state-space tutorial: its exact answers, its models and updates, and chains against both.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from tutorial_runs import TUTORIALS, require_packages, run_script

import pyro_aeb as aeb

require_packages("matplotlib", "pandas", "scipy")
sys.path.insert(0, str(TUTORIALS))  # its helpers are parts of ``reproduce``, as the script has them
kalman = importlib.import_module("reproduce.state_space.kalman")
baum_welch = importlib.import_module("reproduce.state_space.baum_welch")
forecast = importlib.import_module("reproduce.state_space.forecast")
tutorial = importlib.import_module("state_space")

PARAMETERS = kalman.Parameters(a=0.8, q=0.4, r=0.6)
HMM = tutorial.HMM
PRIORS = tutorial.HMM_PRIORS


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def simulate_series(steps: int, seed: int = 0) -> Any:
    return kalman.simulate(steps, PARAMETERS, np.random.default_rng(seed))[1]


def simulate_sequences(count: int, length: int) -> Any:
    rng = np.random.default_rng(0)
    return baum_welch.simulate(count, length, HMM, PRIORS.centre, rng)[1]


# -- Kalman, against Gaussians written out


def dense_covariance(y: Any, a: Any, q: Any, r: Any) -> Any:
    """Covariance of the path and log density of the observations, differentiable."""
    steps = len(y)
    lag = (torch.arange(steps)[:, None] - torch.arange(steps)).clamp(min=0)
    moves = torch.tril(a**lag)  # x = moves @ (x_1, noise, noise, ...)
    sources = torch.cat([torch.ones(1), q.expand(steps - 1)])
    path = moves @ torch.diag(sources) @ moves.T
    observed = torch.distributions.MultivariateNormal(
        torch.zeros(steps), path + r * torch.eye(steps)
    )
    return path, observed.log_prob(torch.as_tensor(y))


def test_smoother_is_conditioning_on_a_joint_gaussian() -> None:
    y = simulate_series(12)
    a, q, r = (torch.tensor(p) for p in PARAMETERS)
    path, _ = dense_covariance(y, a, q, r)
    gain = path @ torch.linalg.inv(path + r * torch.eye(12))
    covariance = (path - gain @ path).numpy()
    found = kalman.smoother(y, PARAMETERS)
    np.testing.assert_allclose(found.mean, gain.numpy() @ y)
    np.testing.assert_allclose(found.variance, covariance.diagonal())
    np.testing.assert_allclose(found.lag, covariance.diagonal(1))
    np.testing.assert_allclose(np.linalg.inv(kalman.precision(12, PARAMETERS)), covariance)
    exact = kalman.sampled_moments(y, PARAMETERS, lambda h: 1.0 / h)
    for one, other in zip(exact, found, strict=True):
        np.testing.assert_allclose(one, other)


def test_kalman_em_ends_where_the_marginal_posterior_is_flat() -> None:
    y, priors = simulate_series(60), kalman.Priors(2.0, 1.0)
    end = kalman.em(y, kalman.Parameters(0.0, 1.0, 1.0), priors)
    leaves = [torch.tensor(value, requires_grad=True) for value in end]
    a, q, r = leaves
    prior = dist.InverseGamma(*(torch.tensor(p) for p in priors))
    log_density = dense_covariance(y, *leaves)[1] + prior.log_prob(q) + prior.log_prob(r)
    gradient = torch.autograd.grad(log_density - a.square() / 2, leaves)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-8)


# -- forward-backward, against all paths of states


def by_enumeration(y: Any, means: Any, parameters: Any) -> Any:
    """Log likelihood, expected transitions, squared distance, visits and sums of one sequence."""
    found = []
    for states in itertools.product(range(2), repeat=len(y)):
        path = np.array(states)
        pairs = np.zeros((2, 2))
        np.add.at(pairs, (path[:-1], path[1:]), 1)
        distance = ((y - means[path]) ** 2).sum()
        log_joint = np.log(0.5) + (pairs * np.log(parameters.transition)).sum()
        log_joint -= distance / (2 * parameters.variance)
        log_joint -= len(y) / 2 * np.log(2 * np.pi * parameters.variance)
        visits = np.bincount(path, minlength=2)
        sums = np.bincount(path, weights=y, minlength=2)
        found.append((log_joint, pairs, distance, visits, sums))
    logs = np.array([row[0] for row in found])
    weights = np.exp(logs - logsumexp(logs))
    averages = [np.tensordot(weights, np.array([row[i] for row in found]), 1) for i in range(1, 5)]
    return [logsumexp(logs), *averages]


def test_forward_backward_is_a_sum_over_all_paths() -> None:
    y, means = simulate_sequences(2, 5), np.array([[-1.0, 1.0], [0.3, 0.5]])
    found = baum_welch.forward_backward(y, means, HMM)
    for g in range(2):
        each = [by_enumeration(row, means[g], HMM) for row in y]
        for i, value in enumerate(found):
            np.testing.assert_allclose(value[g], each[0][i] + each[1][i])


def grid_of_means() -> Any:
    line = np.linspace(-2.0, 2.0, 61)  # as close as the means' standard deviations
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return grid[grid[:, 0] < grid[:, 1]]  # states in their order; the rest is the other mode's


def test_quadrature_is_the_means_posterior() -> None:
    y, grid = simulate_sequences(30, 10), grid_of_means()
    weights = np.exp(baum_welch.log_joint(y, grid, HMM, PRIORS))
    weights /= weights.sum()
    law = baum_welch.quadrature(y, HMM, PRIORS, PRIORS.centre)
    mean = weights @ grid
    np.testing.assert_allclose(law.mean(), mean, atol=1e-4)
    np.testing.assert_allclose(law.sd(), np.sqrt(weights @ (grid - mean) ** 2), rtol=5e-3)


def test_hidden_markov_em_ends_where_the_marginal_posterior_is_flat() -> None:
    y, grid = simulate_sequences(30, 10), grid_of_means()
    start = baum_welch.Parameters(np.full((2, 2), 0.5), 1.0)
    end, _ = baum_welch.em(y, start, PRIORS)

    def marginal(first: float, second: float, variance: float) -> float:
        transition = np.array([[1.0 - first, first], [second, 1.0 - second]])
        at = baum_welch.Parameters(transition, variance)
        prior = (PRIORS.concentration - 1.0) * np.log(transition).sum()
        prior -= (PRIORS.shape + 1.0) * np.log(variance) + PRIORS.rate / variance
        return float(logsumexp(baum_welch.log_joint(y, grid, at, PRIORS)) + prior)

    point = np.array([end.transition[0, 1], end.transition[1, 0], end.variance])
    for step in 1e-4 * np.eye(3):
        slope = (marginal(*(point + step)) - marginal(*(point - step))) / 2e-4
        curvature = (
            marginal(*(point + step)) - 2 * marginal(*point) + marginal(*(point - step))
        ) / 1e-8
        assert abs(slope / curvature) < 1e-4 and curvature < 0.0  # as far off as the quadrature


# -- the tutorial's distributions


def test_hidden_markov_has_the_density_of_the_forward_algorithm() -> None:
    y = simulate_sequences(3, 6)
    law = tutorial.HiddenMarkov(
        torch.tensor(HMM.transition),
        torch.tensor(PRIORS.centre),
        torch.tensor(HMM.variance**0.5),
        6,
    )
    expected = baum_welch.forward_backward(y, PRIORS.centre[None], HMM).log_likelihood[0]
    assert law.log_prob(torch.tensor(y)).sum().item() == pytest.approx(expected)
    assert law.expand([3]).sample().shape == (3, 6)


def test_a_path_has_the_density_of_its_steps_and_draws_of_its_law() -> None:
    law = tutorial.StatePath(lambda x: 0.8 * x, torch.tensor(0.5), 4)
    x = torch.tensor([0.3, -0.2, 0.6, 1.0])
    ahead = dist.Normal(0.8 * x[:-1], 0.5).log_prob(x[1:]).sum()
    torch.testing.assert_close(law.log_prob(x), dist.Normal(0.0, 1.0).log_prob(x[0]) + ahead)
    torch.manual_seed(0)
    draws = law.sample(torch.Size([4000]))[:, -1].square()
    exact = 0.64**3 + 0.25 * (1 + 0.64 + 0.64**2)
    aeb.testing.assert_agrees(*_with_error(draws, exact))


def _with_error(draws: Any, exact: float) -> Any:
    mean, error = aeb.testing.replicates(draws)
    return mean, exact, error


def test_particle_filters_forecast_as_the_kalman_filter_does() -> None:
    y = simulate_series(30)
    _, exact = dense_covariance(y, *(torch.tensor(p) for p in PARAMETERS))
    shape = (40,)  # filters side by side
    q, r = (torch.full(shape, value) for value in (PARAMETERS.q, PARAMETERS.r))
    given = torch.tensor(y), lambda x: PARAMETERS.a * x, q, r
    found = forecast.forecast(*given, particles=4000, seed=0).log_density.sum(-1)
    likelihood = np.exp(found - float(exact))  # unbiased, of the likelihood and not its logarithm
    aeb.testing.assert_agrees(*_with_error(likelihood, 1.0))


# -- the updates: one step with weight 1 is one M-step at the draw in hand


def learned_in_one_step(model: Any, latents: Any, first: Any, *args: Any) -> Any:
    learn = aeb.StochasticApproximation(1.0, latents=latents)
    sampler = aeb.SGHMC(1e-9)
    mcmc = tutorial.run(model, sampler, learn, first, args, chains=2, draws=1, warmup=0)
    return tutorial.by_chain(mcmc)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a draw, and no bar."""
    kernel, mcmc = aeb.AEBKernel, aeb.MCMC

    def one_step(*args: Any, **options: Any) -> Any:
        return kernel(*args, **{**options, "steps_per_draw": 1})

    monkeypatch.setattr(aeb, "AEBKernel", one_step)
    monkeypatch.setattr(aeb, "MCMC", lambda *a, **o: mcmc(*a, disable_progbar=True, **o))


@pytest.mark.usefixtures("quick")
def test_closed_forms_are_the_m_steps_of_kalman_em() -> None:
    y, x = simulate_series(20), simulate_series(20, seed=1)
    latents = {"a": tutorial.CLOSED, "q": tutorial.CLOSED, "r": tutorial.CLOSED}
    first = {**PARAMETERS._asdict(), "x": x}
    found = learned_in_one_step(tutorial.linear, latents, first, torch.tensor(y))
    known = kalman.Moments(x, np.zeros(20), np.zeros(19))
    expected = kalman.m_step(y, known, PARAMETERS, tutorial.LINEAR_PRIORS)
    np.testing.assert_allclose(found["a"], expected.a, rtol=1e-6)
    np.testing.assert_allclose(found["r"], expected.r, rtol=1e-6)
    # All latents move at once, so q is the maximiser at the last a.
    shape, rate = tutorial.LINEAR_PRIORS
    driven = ((x[1:] - PARAMETERS.a * x[:-1]) ** 2).sum()
    np.testing.assert_allclose(found["q"], (rate + driven / 2) / (shape + 1 + 19 / 2), rtol=1e-6)


@pytest.mark.usefixtures("quick")
def test_updates_of_ones_own_are_the_m_steps_of_baum_and_welch() -> None:
    y, means = simulate_sequences(5, 6), np.array([-0.8, 1.3])
    latents = {
        "transition": tutorial.Transitions(),
        "variance": tutorial.Variance(PRIORS.shape + 1 + y.size / 2),
    }
    first = {**HMM._asdict(), "means": means}
    found = learned_in_one_step(tutorial.hidden_markov, latents, first, torch.tensor(y))
    counts = baum_welch.forward_backward(y, means[None], HMM)
    expected = baum_welch.m_step(y, counts, np.ones(1), PRIORS)
    for chain in range(2):
        np.testing.assert_allclose(found["transition"][chain, 0], expected.transition, rtol=1e-6)
        np.testing.assert_allclose(found["variance"][chain, 0], expected.variance, rtol=1e-6)


# -- chains, within Monte Carlo error of the exact answers


def run_short(model: Any, sampler: Any, latents: Any, first: Any, *args: Any) -> Any:
    """The mean of every latent over the last third of each of 16 chains."""
    learn = aeb.StochasticApproximation(tutorial.OMEGA, latents=latents)
    draws = tutorial.by_chain(tutorial.run(model, sampler, learn, first, args, 16, 30, 60))
    return {name: draws[name].mean(1) for name in latents}


@pytest.mark.slow
def test_a_linear_model_is_learned_as_by_kalman_em() -> None:
    y, priors, step = simulate_series(100), tutorial.LINEAR_PRIORS, 0.01
    start = kalman.Parameters(0.0, 1.0, 1.0)

    def variance_of(curvature: float) -> float:
        return float(aeb.testing.sghmc_covariance(step, 1.0, curvature, 0.2)[1, 1])

    exact = kalman.em(y, start, priors, lambda y, at: kalman.sampled_moments(y, at, variance_of))
    first = {**start._asdict(), "x": np.zeros(100)}
    latents = dict.fromkeys("aqr", tutorial.CLOSED)
    found = run_short(tutorial.linear, aeb.SGHMC(step, 0.2), latents, first, torch.tensor(y))
    for name in "aqr":
        mean, error = aeb.testing.replicates(found[name])
        aeb.testing.assert_agrees(mean, getattr(exact, name), error)
        aeb.testing.assert_tells_apart(mean, getattr(start, name), error)


@pytest.mark.slow
def test_a_hidden_markov_model_is_learned_as_by_forward_backward_em() -> None:
    y = simulate_sequences(40, 12)
    start = baum_welch.Parameters(np.full((2, 2), 0.5), 1.0)
    exact, _ = baum_welch.em(y, start, PRIORS)
    latents = {
        "transition": tutorial.Transitions(),
        "variance": tutorial.Variance(PRIORS.shape + 1 + y.size / 2),
    }
    first = {**start._asdict(), "means": [-0.5, 0.5]}
    sampler = aeb.SGHMC(2e-5, 0.1)
    found = run_short(tutorial.hidden_markov, sampler, latents, first, torch.tensor(y), 10)
    for i, j in ((0, 1), (1, 0)):
        mean, error = aeb.testing.replicates(found["transition"][:, i, j])
        aeb.testing.assert_agrees(mean, exact.transition[i, j], error)
        aeb.testing.assert_tells_apart(mean, 0.5, error)
    mean, error = aeb.testing.replicates(found["variance"])
    aeb.testing.assert_agrees(mean, exact.variance, error)
    # So small is the error that maximising over the means too would be found out.
    maximised, _ = baum_welch.baum_welch(y, start, PRIORS)
    aeb.testing.assert_tells_apart(mean, maximised.variance, error)


@pytest.mark.slow
@pytest.mark.tutorial
def test_the_tutorial_runs_at_smoke_size(tmp_path: Path) -> None:
    printed = run_script("state_space.py", "--smoke", "--out", "results", cwd=tmp_path)
    table = (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
    for heading in ("## Linear and Gaussian", "## Hidden Markov", "## A neural law of motion"):
        assert heading in table and heading in printed
    for picture in ("linear", "hidden_markov", "neural"):
        image = tmp_path / "results" / f"{picture}.png"
        assert image.read_bytes().startswith(b"\x89PNG")
