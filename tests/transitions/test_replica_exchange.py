# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Swaps preserve both laws, with exact and with noisy energies, and cross barriers."""

import math
import re

import pytest
import torch
from bimodal import SHARES, TwoModes, simulate
from scipy.integrate import quad
from scipy.stats import norm

from pyro_aeb.testing import assert_agrees, assert_tells_apart, replicates, sgld_variance
from pyro_aeb.transitions import (
    BAOAB,
    SGHMC,
    SGLD,
    Evaluated,
    ReplicaExchange,
    SGLDState,
    StepNumbers,
)
from pyro_aeb.transitions.replica_exchange import log_swap


def test_a_step_without_a_swap_is_one_of_each_replica_at_its_temperature():
    transition = ReplicaExchange(SGLD(1.0), 4.0, step_size_ratio=2.0, swap_every=10)
    state = transition.init(torch.zeros(1, 1, dtype=torch.float64))._replace(
        position=torch.tensor([[-2.0]]).double(), hot_position=torch.tensor([[1.0]]).double()
    )
    z = torch.tensor([[0.3, -0.7, 5.0]]).double()
    target, numbers = TwoModes(9), StepNumbers(0.01, 2.0)
    after = transition.move(state, target.batch(state.position), z, numbers, target)
    for name, part, own in (
        ("position", z[:, :1], numbers),
        ("hot_position", z[:, 1:2], StepNumbers(0.02, 0.5)),
    ):
        x = getattr(state, name)
        expected = SGLD(1.0).step(SGLDState(x), target.batch(x).gradient, part, own).position
        torch.testing.assert_close(getattr(after, name), expected, rtol=1e-14, atol=0.0)


def test_a_swap_exchanges_positions_but_not_momenta():
    transition = ReplicaExchange(SGHMC(1.0), 4.0, swap_every=5)
    one = torch.ones(1, 1, dtype=torch.float64)
    state = transition.init(one)._replace(
        position=-3.0 * one, hot_position=3.1 * one, momentum=0.1 * one, hot_momentum=0.4 * one
    )
    target, tiny = TwoModes(5), StepNumbers(1e-30, 1.0)
    for decides, swaps in ((-40.0, True), (40.0, False)):  # probabilities of next to 0 and 1
        z = torch.tensor([[0.0, 0.0, decides]]).double()
        after = transition.move(state, target.batch(state.position), z, tiny, target)
        places = (3.1, -3.0) if swaps else (-3.0, 3.1)
        assert float(after.position) == pytest.approx(places[0] + 0.9 * 0.1)
        assert float(after.hot_position) == pytest.approx(places[1] + 0.9 * 0.4)
    gain = float(target.whole(3.1 * one).log_density - target.whole(-3.0 * one).log_density)
    assert float(after.swap_rate) == pytest.approx(math.exp(0.75 * gain))  # of one attempt


@pytest.mark.parametrize("sd", [0.0, 0.5, 2.0])
def test_the_correction_for_noise_restores_detailed_balance(sd):
    """
    With the gain known up to a normal error of variance s^2, the mean probability of a swap one way
    over that of the way back is exp(delta gain), as it has to be; without the correction it is not.
    """
    delta, gain = 0.8, 1.3

    def mean_probability(gain, variance):
        def integrand(e):
            estimate = torch.tensor(gain + sd * e, dtype=torch.float64)
            return math.exp(float(log_swap(estimate, delta, variance))) * norm.pdf(e)

        kink = min(max((delta * float(variance) / 2 - gain) / sd, -12.0), 12.0) if sd else 0.0
        return quad(integrand, -12, 12, points=[kink], limit=200)[0]

    def log_ratio(variance):
        return math.log(mean_probability(gain, variance) / mean_probability(-gain, variance))

    assert log_ratio(torch.tensor(sd**2)) == pytest.approx(delta * gain, rel=1e-6)
    if sd > 0.0:
        assert log_ratio(torch.tensor(0.0)) < 0.95 * delta * gain


class NoisyEnergies:
    """A standard normal target whose batch has noise in its energies, and none in its gradient."""

    SD = 2.0

    def __init__(self, step, generator):
        self.step, self._generator = step, generator

    def whole(self, position, prior=True):
        return Evaluated(-0.5 * position.square().sum(-1), -position)

    def batch(self, position, prior=True):
        log_density, gradient = self.whole(position)
        noise = torch.randn(len(position), generator=self._generator, dtype=torch.float64)
        return Evaluated(log_density + self.SD * noise, gradient)


class NoCorrection(ReplicaExchange):
    """The variance of noisy energies is taken to be zero."""

    def move(self, state, evaluated, noise, numbers, target):
        return super().move(
            state._replace(variance=0 * state.variance), evaluated, noise, numbers, target
        )


def mean_squares(kind):
    """The mean squares of both replicas, and the estimated variance, with noise in the energies."""
    epsilon, tau, chains = 0.1, 1.0, 2000
    transition = kind(SGLD(epsilon), 3.0, swap_every=1, energies="batch", variance_every=3)
    generator = torch.Generator().manual_seed(3)
    state = transition.init(torch.randn(chains, 1, generator=generator, dtype=torch.float64))
    sums = torch.zeros(chains, 3, dtype=torch.float64)
    for k in range(1, 601):
        target = NoisyEnergies(k, generator)
        z = torch.randn(chains, 3, generator=generator, dtype=torch.float64)
        evaluated = target.batch(state.position)
        state = transition.move(state, evaluated, z, StepNumbers(epsilon, tau), target)
        if k > 200:
            figures = [state.position.square(), state.hot_position.square(), state.variance]
            sums += torch.cat(figures, -1) / 400
    return replicates(sums)


def test_with_noisy_energies_both_replicas_keep_their_laws():
    # One coordinate at curvature 1, at tau = 1 and 1/3, each with the bias of SGLD's step, 5 %.
    (cold, hot, variance), error = mean_squares(ReplicaExchange)
    own = sgld_variance(0.1, 1.0, 1.0), sgld_variance(0.1, 1.0 / 3.0, 1.0)
    assert abs(cold - own[0]) < 0.05 + 5 * error[0] and abs(hot - own[1]) < 0.15 + 5 * error[1]
    # The difference of two energies has twice the variance of one.
    assert_agrees(variance, 2 * NoisyEnergies.SD**2, error[2])
    # Without the correction the cold one is far too hot.
    (wrong, _, _), error = mean_squares(NoCorrection)
    assert_tells_apart(wrong, own[0] + 0.05, error[0])
    assert wrong > own[0] + 0.15


def test_it_crosses_a_barrier_that_langevin_dynamics_does_not():
    """All chains begin in the mode at -3; the exact share of the other one is 0.3."""

    def shares(transition):
        total, steps = torch.zeros(200, dtype=torch.float64), 6000
        for k, (_, state, _, _) in enumerate(simulate(transition, steps, 200), 1):
            if k > steps / 3:
                total += (state.position[:, 0] > 0.0) / (2 * steps / 3)
        return replicates(total), state

    (share, _), _ = shares(SGLD(0.02))
    assert share == 0.0
    (share, error), state = shares(ReplicaExchange(SGLD(0.02), 16.0, 8.0, swap_every=5))
    assert_agrees(share, SHARES[1], error)
    assert_tells_apart(share, 0.5, error)
    assert 0.05 < float(state.swap_rate.mean()) < 0.9


def test_the_state_holds_both_replicas():
    state = ReplicaExchange(BAOAB(0.1)).init(torch.ones(2))
    assert state._fields == (
        *("position", "momentum", "hot_position", "hot_momentum", "swap_rate", "variance"),
    )
    assert state.held == ("momentum", "hot_position", "hot_momentum")


def test_junk_is_refused():
    for ratio in (1.0, 0.5, math.inf, math.nan):
        message = f"temperature_ratio is {ratio}, expected a finite number > 1"
        with pytest.raises(ValueError, match=re.escape(message)):
            ReplicaExchange(SGLD(0.1), ratio)
    with pytest.raises(ValueError, match="energies is 'all', expected 'whole'"):
        ReplicaExchange(SGLD(0.1), energies="all")
    with pytest.raises(
        ValueError,
        match="swap_every is 0, expected an integer of at least 1, the steps between swaps",
    ):
        ReplicaExchange(SGLD(0.1), swap_every=0)
    with pytest.raises(ValueError, match="step_size_ratio is 0, expected a finite number > 0"):
        ReplicaExchange(SGLD(0.1), step_size_ratio=0)
