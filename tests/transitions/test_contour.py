# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The flattened density, its weights, and crossing of a barrier."""

import math

import pytest
import torch
from bimodal import SHARES, simulate

from pyro_aeb.testing import assert_agrees, assert_tells_apart
from pyro_aeb.testing.steps import target_at
from pyro_aeb.transitions import SGLD, ContourSGLD, ContourSGLDState, StepNumbers

BINS = ContourSGLD(0.1, energies=(1.0, 3.0), bins=4, zeta=0.5, weight=0.2)  # of width 1/2
SHARES_OF_BINS = torch.tensor([0.5, 0.1, 0.3, 0.1], dtype=torch.float64)


def contour(energy):
    energy = torch.as_tensor(energy, dtype=torch.float64)
    slope, value = BINS.contour(SHARES_OF_BINS.expand(*energy.shape, 4), energy)
    return slope[..., 0], value[..., 0]


def test_log_psi_has_the_shares_at_the_upper_ends_of_bins():
    _, value = contour([1.5, 2.0, 2.5, 3.0])
    torch.testing.assert_close(value, SHARES_OF_BINS.log(), rtol=1e-12, atol=1e-12)
    slope, value = contour([-9.0, 1.0, 1.2, 3.0, 99.0])  # flat in the first bin, and outside
    assert torch.equal(slope, torch.zeros(5).double())
    expected = SHARES_OF_BINS.log()[[0, 0, 0, 3, 3]]
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_log_psi_is_continuous_and_the_slope_is_its_derivative():
    energy = torch.linspace(0.51, 3.49, 400, dtype=torch.float64)
    slope, value = contour(energy)
    h = 1e-7
    _, ahead = contour(energy + h)
    _, behind = contour(energy - h)
    torch.testing.assert_close((ahead - behind) / (2 * h), slope, rtol=1e-6, atol=1e-6)
    assert float(value.diff().abs().max()) < 3.3 * float(energy.diff().max())  # log 5 / 0.5 = 3.2


def test_a_step_is_the_two_lines_of_its_docstring():
    position = torch.tensor([1.0, -1.2, 0.6], dtype=torch.float64)  # of energy 1.4
    position = position * math.sqrt(1.7 / 1.4)  # of energy 1.7, in the second bin
    noise = torch.tensor([0.3, -0.1, 2.0], dtype=torch.float64)
    epsilon, tau = 0.02, 2.0
    target = target_at(position, -position, k=7)
    state = ContourSGLDState(position, SHARES_OF_BINS)
    numbers = StepNumbers(epsilon, tau)
    after = BINS.move(state, target.batch(position), noise, numbers, target)
    one = torch.tensor([0.0, 1.0, 0.0, 0.0]).double()
    shares = SHARES_OF_BINS + 0.2 * math.sqrt(0.1) * (one - SHARES_OF_BINS)
    torch.testing.assert_close(after.shares, shares, rtol=1e-12, atol=0.0)
    factor = 1 + 0.5 / tau * math.log(float(shares[1] / shares[0])) / 0.5
    expected = position - epsilon * factor * position + math.sqrt(2 * epsilon / tau) * noise
    torch.testing.assert_close(after.position, expected, rtol=1e-12, atol=0.0)
    _, log_psi = BINS.contour(shares, 0.5 * after.position.square().sum())
    figures = BINS.statistics(state, after, numbers, target)
    assert float(figures["log_weight"]) == pytest.approx(0.5 * float(log_psi), rel=1e-12)


def test_shares_stay_positive_and_sum_to_one():
    transition = ContourSGLD(0.1, energies=(0.0, 20.0), bins=10, weight=0.5)
    for _, state, _, _ in simulate(transition, 200, 5):
        torch.testing.assert_close(state.shares.sum(-1), torch.ones(5).double())
        assert bool((state.shares > 0.0).all())


def test_it_crosses_a_barrier_and_its_weights_give_the_exact_share():
    """
    All chains begin in the mode at -3, the barrier is 18 high, and the exact share of the mode at 3
    is 0.3. It takes about 10,000 steps until the shares of the bins, over orders of magnitude,
    are learned. Of all chains together, after 12,000, the weighted share of that mode; its error by
    chains, as of a ratio.
    """
    steps, warmup, chains = 20_000, 12_000, 100
    transition = ContourSGLD(0.05, energies=(0.0, 20.0), bins=20, zeta=1.0, weight=0.01)
    weights, inside, above = torch.zeros(3, chains, dtype=torch.float64)
    for k, (before, state, numbers, target) in enumerate(simulate(transition, steps, chains), 1):
        if k > warmup and k % 10 == 0:
            figures = transition.statistics(before, state, numbers, target)
            w, right = figures["log_weight"].exp(), state.position[:, 0] > 0.0
            weights, inside, above = weights + w, inside + w * right, above + right
    share = inside.sum() / weights.sum()
    error = (inside - share * weights).std() / weights.mean() / math.sqrt(chains)
    assert_agrees(share, SHARES[1], error)
    assert_tells_apart(share, 0.5, error)
    *_, (_, state, _, _) = simulate(SGLD(0.05), 3000, chains)
    assert not bool((state.position > 0.0).any())


def test_junk_is_refused():
    with pytest.raises(TypeError, match=r"energies is 3.0, expected \(low, high\)"):
        ContourSGLD(0.1, 3.0)
    for energies in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=r"expected finite \(low, high\), low < high"):
            ContourSGLD(0.1, energies)
    with pytest.raises(ValueError, match="bins is 1, expected an integer of at least 2"):
        ContourSGLD(0.1, (0.0, 1.0), bins=1)
    with pytest.raises(ValueError, match=r"zeta is 0.0, expected a number in \(0, 1\]"):
        ContourSGLD(0.1, (0.0, 1.0), zeta=0.0)
