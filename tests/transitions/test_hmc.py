# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Trajectories, and their acceptance."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from loader_data import shuffling_loader
from models import loader_regression

import pyro_aeb as aeb
from pyro_aeb import StochasticApproximation
from pyro_aeb.testing import assert_agrees, batch_means, check_mean
from pyro_aeb.testing.steps import STANDARD_NORMAL, target_at
from pyro_aeb.transitions import HMC, Evaluated, HMCState, StepNumbers


def move(transition, position, noise, numbers):
    target = target_at(position, -position)
    state = HMCState(position, torch.ones_like(position[..., :1]))
    return transition.move(state, target.batch(position), noise, numbers, target)


def test_a_trajectory_is_that_of_the_leapfrog():
    eta, tau = 0.3, 2.0
    x, z = torch.randn(2, 4, dtype=torch.float64)
    sure = torch.cat([z, torch.full((1,), -torch.inf).double()])
    after = move(HMC(1.0, 3, jitter=0.0), x, sure, StepNumbers(eta, tau))
    v, before = math.sqrt(eta / tau) * z, x
    energy = tau * (x.square().sum() / 2 + v.square().sum() / (2 * eta))
    for _ in range(3):
        v = v - eta / 2 * x
        x = x + v
        v = v - eta / 2 * x
    change = tau * (x.square().sum() / 2 + v.square().sum() / (2 * eta)) - energy
    torch.testing.assert_close(after.position, x, rtol=1e-13, atol=1e-13)
    assert float(after.acceptance) == pytest.approx(min(1.0, math.exp(-float(change))), rel=1e-10)
    # And back, with the momentum turned round.
    back = torch.cat([-v / math.sqrt(eta / tau), torch.full((1,), -torch.inf).double()])
    again = move(HMC(1.0, 3, jitter=0.0), x, back, StepNumbers(eta, tau))
    torch.testing.assert_close(again.position, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_jitter_is_a_trajectory_with_smaller_steps(jitter):
    eta, tau = 0.3, 2.0
    x, z = torch.randn(2, 4, dtype=torch.float64)
    numbers = torch.tensor([0.7, -torch.inf]).double()  # of the factor, and of the decision
    after = move(HMC(1.0, 3, jitter), x, torch.cat([z, numbers]), StepNumbers(eta, tau))
    factor = 1.0 - jitter * torch.special.ndtr(numbers[0])
    same = move(
        HMC(1.0, 3, jitter=0.0),
        x,
        torch.cat([z, numbers[1:]]),
        StepNumbers(float(factor) ** 2 * eta, tau),
    )
    torch.testing.assert_close(after.position, same.position, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.acceptance, same.acceptance, rtol=1e-12, atol=1e-12)


def test_chains_have_factors_of_their_own():
    x, z = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    z[:, -1] = -torch.inf
    transition, numbers = HMC(1.0, 3), StepNumbers(0.3, 2.0)
    together = move(transition, x, z, numbers)
    for chain in range(3):
        alone = move(transition, x[chain], z[chain], numbers)
        assert torch.equal(alone.position, together.position[chain])


def test_rejected_and_diverging_trajectories_stay():
    x, z = torch.randn(2, 4, dtype=torch.float64)
    refused = torch.cat([z, torch.full((1,), torch.inf).double()])
    assert torch.equal(move(HMC(1.0, 3, jitter=0.0), x, refused, StepNumbers(0.3, 2.0)).position, x)
    sure = torch.cat([z, torch.full((1,), -5.0).double()])
    after = move(HMC(1.0, 400, jitter=0.0), x, sure, StepNumbers(100.0, 2.0))  # unstable from 4 on
    assert torch.equal(after.position, x) and float(after.acceptance) == 0.0


@pytest.mark.parametrize("jitter", [0.0, 0.5])
@pytest.mark.parametrize("eta", [0.5, 2.0, 3.5])
def test_a_gaussian_is_exact_up_to_the_largest_stable_step(eta, jitter):
    """Twenty weights at curvature 1, stable below 4. One trajectory from the target stays there."""
    tau, size = 2.0, 20
    transition, numbers = HMC(1.0, leapfrogs=2, jitter=jitter), StepNumbers(eta, tau)

    def draw(chains, rng):
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x = torch.randn(chains, size, generator=generator, dtype=torch.float64) / math.sqrt(tau)
        for _ in range(5):
            count = transition.noise_size(size)
            z = torch.randn(chains, count, generator=generator, dtype=torch.float64)
            x = move(transition, x, z, numbers).position
        return (x.square().mean(-1) * tau).numpy()

    check_mean(draw, 1.0, size=2000)


def test_energies_are_subtracted_in_double_precision():
    """
    Where Q is 1e6 its digits in single precision are 1/16 apart, and that is all that is lost:
    kinetic energies of many weights are summed and subtracted in double precision.
    """

    class FarDown:
        step = 1

        def whole(self, position, prior=True):
            found = STANDARD_NORMAL.evaluate(position)
            return Evaluated(found.log_density - 1e6, found.gradient)

        batch = whole

    x = torch.randn(10_000)
    z = torch.cat([torch.randn(10_000), torch.zeros(1)])
    numbers, target = StepNumbers(1e-6, 1.0), FarDown()
    state = HMC(1.0, 1).init(x)
    acceptance = HMC(1.0, 1, jitter=0.0).move(state, target.batch(x), z, numbers, target).acceptance
    assert abs(math.log(float(acceptance))) <= 1 / 8  # either end is off by at most 1/16


def normal_means(y, batch=None):
    """A Gaussian posterior of curvature N / 0.9^2 + 1 / 1.5^2."""
    with pyro.plate("columns", y.shape[1]):
        mu = pyro.sample("mu", dist.Normal(5.0, 1.5))
    with pyro.plate("data", len(y), subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(mu, 0.9).to_event(1), obs=y[i])


@pytest.mark.parametrize("batch", [None, 5])
def test_in_the_kernel_it_is_exact_whatever_the_batch(batch):
    y = torch.randn(20, 30) + 2.0
    curvature, tau = 20 / 0.9**2 + 1 / 1.5**2, 2.0
    transition = HMC(1.0 / curvature, leapfrogs=2)
    kernel = aeb.AEBKernel(normal_means, transition, inverse_temperature=tau, seed=1)
    run = aeb.MCMC(kernel, 240, 10, disable_progbar=True)
    run.run(y, batch)
    draws = run.get_samples()["mu"].double()
    mean = ((y.sum(0) / 0.9**2 + 5.0 / 1.5**2) / curvature).double()
    estimate, error = batch_means(((draws - mean) ** 2).mean(1).numpy())
    assert_agrees(estimate, 1 / (tau * curvature), error)
    rate = aeb.to_arviz(run).sample_stats["acceptance_rate"].values
    assert 0.0 < rate.min() < rate.max() <= 1.0 and 0.3 < rate.mean() < 0.95


@pytest.mark.parametrize("width", [0.5, 0.25, 1 / 3])
def test_no_direction_is_frozen(width):
    """
    A trajectory of a quarter of the slowest period: a half, a whole and three quarters of the turn
    of narrower directions.
    """

    def two_widths():
        pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, width])).to_event(1))

    leapfrogs = 10
    transition = HMC((math.pi / 2 / leapfrogs) ** 2, leapfrogs)
    run = aeb.MCMC(aeb.AEBKernel(two_widths, transition, seed=0), 600, 20, disable_progbar=True)
    run.run()
    squares = run.get_samples()["x"].double().square()
    for i, variance in enumerate((1.0, width**2)):
        estimate, error = batch_means(squares[:, i].numpy())
        assert error < 0.2 * variance
        assert_agrees(estimate, variance, error)


def test_a_loader_has_no_whole_data_set():
    kernel = aeb.AEBKernel(
        loader_regression, HMC(1e-3), adaptation=StochasticApproximation(0.1), seed=1
    )
    with pytest.raises(aeb.ModelError, match="asks for the whole data set.*DataLoader"):
        aeb.MCMC(kernel, 2, 0, disable_progbar=True).run(shuffling_loader())


@pytest.mark.parametrize("leapfrogs", [0, 1.5, True])
def test_junk_is_refused(leapfrogs):
    with pytest.raises(
        ValueError, match="expected an integer of at least 1, the leapfrogs of a trajectory"
    ):
        HMC(0.1, leapfrogs)


@pytest.mark.parametrize("jitter", [-0.1, 1.1, math.nan])
def test_jitter_is_a_share(jitter):
    with pytest.raises(ValueError, match="HMC: jitter is .*, expected"):
        HMC(0.1, jitter=jitter)
