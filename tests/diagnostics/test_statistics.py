# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Statistics of the draws, against formulas and against the run itself."""

import math

import pytest
import torch
from models import double_regression, linear_data
from small_runs import P, X, Y, gaussian, make_kernel, regression, run_mcmc

import pyro_aeb as aeb
from pyro_aeb.adaptation.equations import beta_counts, beta_mode
from pyro_aeb.testing import linear_scheme, sghmc_covariance, sgld_variance
from pyro_aeb.transitions import SGHMCState, SGLDState, StepNumbers

NAMES = {"sa_residual_rho", "sa_residual_sigma", "sa_residual_delta"}


# The residual of the latents


def test_the_residual_is_the_distance_to_what_the_equations_ask_for():
    x, y = linear_data(dtype=torch.float64)
    own = aeb.AEBKernel(double_regression, aeb.SGLD(1e-4), aeb.StochasticApproximation(0.3), seed=1)
    own.setup(0, x, y)
    own.sample(own.initial_params)
    before, residuals = own.chain.ssgl, {}
    posterior, keep = own.chain.posterior, own.chain.posterior.evaluate_likelihood

    def noted(*args):
        found = keep(*args)
        residuals.update(found.statistics.residuals)
        return found

    posterior.evaluate_likelihood = noted
    own.sample(own.initial_params)
    after, stats = own.chain.ssgl, own.diagnostics()["sample_stats"]
    beta = posterior.structure.select_sparse(own.chain.state.position)
    asked = posterior.adaptation.spike_and_slab.update(
        before, beta, residuals, 1.0
    )  # a step of weight 1 closes (4)
    torch.testing.assert_close(stats["sa_residual_rho"][-1], (asked.rho - before.rho).norm())
    delta = beta_mode(after.rho.sum(), *beta_counts(3, 2.0, 3.0))
    torch.testing.assert_close(stats["sa_residual_delta"][-1], (delta - before.delta).norm())
    moved = (after.sigma - before.sigma).norm()
    torch.testing.assert_close(0.3 * stats["sa_residual_sigma"][-1], moved)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {"sa_residual_rho", "sa_residual_delta"}), ({"adaptation": None}, set())],
    ids=["delta is learned", "nothing is learned"],
)
def test_only_what_is_learned_has_a_residual(options, expected):
    found = run_mcmc(make_kernel(**options), draws=2, warmup=0)._diagnostics[0]["sample_stats"]
    assert NAMES & found.keys() == expected


def test_a_frozen_latent_has_no_residual():
    frozen = make_kernel(adaptation=aeb.StochasticApproximation(0.0))
    found = run_mcmc(frozen, draws=2, warmup=0)._diagnostics[0]["sample_stats"]
    assert found["sa_residual_rho"].isnan().all()


def test_statistics_cost_nothing_in_steps_that_are_not_draws(monkeypatch):
    calls = []
    own = make_kernel(steps_per_draw=7)
    monkeypatch.setattr(
        aeb.SGHMC, "statistics", lambda *args: calls.append(own.chain.step) or {}, raising=True
    )
    run_mcmc(own, draws=3, warmup=1, chains=1, chain_method="sequential")
    assert calls == [6, 13, 20, 27]  # during steps 7, 14, 21, 28


# The kinetic temperature


@pytest.mark.parametrize("friction", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("eta_h", [1e-3, 0.3])
def test_the_stationary_mean_square_of_momentum(friction, eta_h):
    h, tau, g = 4.0, 2.0, 3.0
    eta = eta_h / h
    for noise, variance in [(0.0, 0.0), (0.4 * friction, g)]:
        found = sghmc_covariance(eta, tau, h, friction, noise, variance)[0, 0]
        injected = 2 * eta * (friction - noise) / tau + eta**2 * variance
        assert found == pytest.approx(injected / (friction * (2 - friction - eta * h / 2)))
    small = sghmc_covariance(1e-9, tau, h, friction)[0, 0]
    assert small == pytest.approx(1e-9 / (tau * (1 - friction / 2)))


@pytest.mark.parametrize("g", [0.0, 5.0])
def test_the_stationary_mean_square_of_a_step_of_sgld(g):
    h, tau, epsilon = 4.0, 2.0, 0.1
    scheme = linear_scheme(
        aeb.SGLD(epsilon), torch.eye(1).double().numpy() * h, torch.zeros(1).double().numpy(),
        StepNumbers(epsilon, tau),
    )  # fmt: skip
    assert scheme is not None
    variance = scheme.position_covariance(g)[0, 0]
    step = epsilon**2 * (h**2 * variance + g) + 2 * epsilon / tau
    ratio = (1 + epsilon * tau * g / 2) / (1 - epsilon * h / 2)
    assert step == pytest.approx(ratio * 2 * epsilon / tau)
    assert variance == pytest.approx(ratio / (tau * h)) == sgld_variance(epsilon, tau, h, g)


@pytest.mark.parametrize("transition", [aeb.SGLD(0.2), aeb.SGHMC(0.2, friction=0.4)])
def test_a_run_reports_the_stationary_value(transition):
    size = 20_000  # independent weights of one law
    own = aeb.AEBKernel(lambda: gaussian(size), transition, seed=2, steps_per_draw=40)
    own.setup(1)
    for _ in range(2):
        own.sample(own.initial_params)
    found = float(own.diagnostics()["sample_stats"]["kinetic_temperature"][-1])
    if isinstance(transition, aeb.SGLD):
        expected = 1 / (1 - 0.2 * 4.0 / 2)
    else:
        covariance = sghmc_covariance(0.2, 1.0, 4.0, 0.4)
        expected = covariance[0, 0] / (0.2 / (1 - 0.4 / 2))
    # 5 standard errors of a mean of squares of normals
    assert abs(found / expected - 1) < 5 * math.sqrt(2 / size)


def test_weights_that_are_held_at_zero_do_not_count():
    held = torch.tensor([0.0, 1.0, -2.0, 3.0])
    momentum = torch.tensor([5.0, 0.1, 0.2, 0.3])
    numbers = StepNumbers(0.2, 2.0)
    after = SGHMCState(held + momentum, momentum)
    found = aeb.SGHMC(0.2, friction=0.5).statistics(SGHMCState(held, momentum), after, numbers)
    mean_square = (0.01 + 0.04 + 0.09) / 3
    torch.testing.assert_close(
        found["kinetic_temperature"], torch.tensor(mean_square / (0.2 / (2.0 * 0.75)))
    )
    found = aeb.SGLD(0.2).statistics(SGLDState(held), SGLDState(held + momentum), numbers)
    torch.testing.assert_close(
        found["kinetic_temperature"], torch.tensor(mean_square / (2 * 0.2 / 2.0))
    )


class Counting(aeb.SGLD):
    """A transition with a statistic of another name."""

    def statistics(self, before, state, numbers):
        return {"farthest": state.position.abs().amax(-1)}


class Silent:
    """A transition without statistics."""

    step_size = aeb.Constant(1e-4)

    def init(self, position):
        return SGLDState(position)

    def step(self, state, gradient, noise, numbers):
        return aeb.SGLD(1e-4).step(state, gradient, noise, numbers)


def test_a_new_transition_brings_its_own_figures():
    mcmc = run_mcmc(make_kernel(transition=Counting(1e-4)), draws=4, warmup=0)
    found = mcmc._diagnostics[1]["sample_stats"]["farthest"]
    torch.testing.assert_close(
        found, mcmc.get_samples(group_by_chain=True)["beta"][1].abs().amax(1)
    )
    silent = run_mcmc(make_kernel(transition=Silent()), draws=4, warmup=0)
    assert "kinetic_temperature" not in silent._diagnostics[0]["sample_stats"]


# Pruning


def test_flips():
    kernel = make_kernel(regression, aeb.SGLD(1e-3), pruning=aeb.MagnitudePruning(0.5))
    kernel.setup(0, X, Y)
    kernel.chain.pruner.zero = None
    flips = kernel.chain.pruner.flips
    assert flips(torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])).tolist() == [0, 0]
    assert flips(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 5.0]])).tolist() == [2, 0]
    assert flips(torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 5.0]])).tolist() == [1, 1]


@pytest.mark.parametrize("freeze", [False, True])
def test_flips_of_a_run_are_those_of_its_draws(freeze):
    pruning = aeb.MagnitudePruning(0.5, freeze=freeze)
    mcmc = run_mcmc(make_kernel(regression, aeb.SGLD(1e-3), pruning=pruning), draws=30, warmup=1)
    zero = mcmc.get_samples(group_by_chain=True)["beta"] == 0.0
    assert (zero.sum(-1) == P // 2).all()
    expected = (zero[:, 1:] != zero[:, :-1]).sum(-1)
    for chain, own in enumerate(mcmc._diagnostics):
        found = own["sample_stats"]["pruning_flips"]
        assert torch.equal(found[1:], expected[chain])
    assert (expected.sum() == 0) == freeze
