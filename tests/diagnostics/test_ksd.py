# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The kernel Stein discrepancy, against its definition and on known laws."""

import numpy as np
import pytest
import torch
from scipy import integrate
from small_runs import gaussian, make_kernel, run_mcmc

import pyro_aeb as aeb
from pyro_aeb.diagnostics.stein import stein_matrix, stein_test
from pyro_aeb.testing import sgld_variance


def test_the_kernel_by_autograd():
    d = 3
    generator = np.random.default_rng(1)
    x, score = generator.normal(size=(4, d)), generator.normal(size=(4, d))

    def k(a, b):
        return (1 + ((a - b) ** 2).sum() / d) ** -0.5

    found = stein_matrix(x, score)
    for i in range(4):
        for j in range(4):
            a, b = (torch.tensor(v, requires_grad=True) for v in (x[i], x[j]))
            grad_a, grad_b = torch.autograd.functional.jacobian(k, (a, b))
            mixed = torch.autograd.functional.hessian(k, (a, b))[0][1]
            s, t = torch.tensor(score[i]), torch.tensor(score[j])
            expected = s @ t * k(a, b) + s @ grad_b + t @ grad_a + mixed.trace()
            assert found[i, j] == pytest.approx(float(expected.detach()))


def test_its_mean_is_zero_under_the_target():
    def integrand(y):
        points = np.array([[0.7], [y]])
        return stein_matrix(points, -points)[0, 1] * np.exp(-0.5 * y**2)

    assert integrate.quad(integrand, -12, 12)[0] == pytest.approx(0.0, abs=1e-9)


def count_rejections(scale: float, memory: float = 0.0, d: int = 2, replicates: int = 100) -> int:
    """Count how often draws of N(0, scale^2), correlated or not, are rejected as N(0, 1) at 5 %."""
    generator = np.random.default_rng(4)
    count = 0
    for _ in range(replicates):
        x = np.zeros((100, d))
        state = generator.normal(size=d)
        for row in x:
            fresh = generator.normal(size=d)
            state = memory * state + np.sqrt(1 - memory**2) * fresh
            row[:] = scale * state
        count += stein_test(x, -x, 200, generator)[1] <= 0.05
    return count


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_draws_of_the_target_are_rejected_as_rarely_as_stated(memory):
    assert count_rejections(1.0, memory) <= 5 + 4 * np.sqrt(100 * 0.05 * 0.95)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_draws_of_another_law_are_rejected(scale):
    assert count_rejections(scale, replicates=20) == 20


@pytest.mark.parametrize(("step_size", "same"), [(0.02, True), (0.4, False)])
def test_it_tells_a_run_with_a_large_step(step_size, same):
    assert (sgld_variance(step_size, 1.0, 4.0) < 0.3) == same  # the target's is 1/4
    kernel = make_kernel(
        lambda: gaussian(2), aeb.SGLD(step_size), adaptation=None, steps_per_draw=20
    )
    mcmc = run_mcmc(kernel, args=(), draws=200, warmup=10, chains=1, chain_method="sequential")
    found = aeb.diagnostics.ksd(mcmc)
    assert (found.draws, found.dimension) == (200, 2)
    assert (found.p_value > 0.01) == same


def test_sites_are_chosen_by_name():
    mcmc = run_mcmc(draws=20)
    assert aeb.diagnostics.ksd(mcmc, sites=["beta"], draws=10, chain=1).draws == 10
    with pytest.raises(ValueError, match=r"sites names \['gamma'\], expected some of \['beta'\]"):
        aeb.diagnostics.ksd(mcmc, sites=["gamma"])
    without = run_mcmc(make_kernel(save=["delta"]), draws=10)
    with pytest.raises(ValueError, match=r"the draws do not hold \['beta'\]"):
        aeb.diagnostics.ksd(without)


def test_what_pruning_holds_at_zero_is_taken_as_given():
    pruning = aeb.MagnitudePruning(0.5, freeze=True, sites="w")
    kernel = make_kernel(
        lambda: gaussian(4), aeb.SGLD(0.02), adaptation=None, pruning=pruning, steps_per_draw=20
    )
    mcmc = run_mcmc(kernel, args=(), draws=100, warmup=10, chains=1, chain_method="sequential")
    found = aeb.diagnostics.ksd(mcmc)
    assert found.dimension == 2 and found.p_value > 0.01
    still = make_kernel(gaussian, aeb.SGLD(1e-30), adaptation=None)
    with pytest.raises(ValueError, match="none of 1 coordinates moves"):
        aeb.diagnostics.ksd(run_mcmc(still, args=(), draws=10))
