# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The estimates of tuning, against matrices and laws that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_aeb.tuning.diagonal import FLATTEST, Diagonal
from pyro_aeb.tuning.largest import Largest
from pyro_aeb.tuning.noise import GradientNoise, excess_temperature
from pyro_aeb.tuning.pilot import MOST_STEPS, Pilot, autocorrelation_times, steps_per_draw
from pyro_aeb.tuning.step_size import (
    EXCESS,
    SMALLEST_FRICTION,
    cap,
    floor,
    friction_of,
    friction_of_slowest,
    next_step_size,
)
from pyro_aeb.tuning.temperature import Temperatures

generator = torch.Generator().manual_seed(0)


def matrix(size: int) -> torch.Tensor:
    """Return a random curvature with a diagonal over six decades."""
    root = torch.randn(size, 3 * size, dtype=torch.float64, generator=generator)
    scale = torch.logspace(-1.5, 1.5, size, dtype=torch.float64)
    return scale[:, None] * (root @ root.T / (3 * size)) * scale


def test_probes_give_the_diagonal():
    curvature = matrix(12)
    estimate = Diagonal(torch.zeros(12).double(), torch.zeros(12).double())
    scale = curvature.diagonal().rsqrt()
    for _ in range(4000):
        signs = torch.randint(0, 2, (2, 12), generator=generator).double() * 2 - 1
        step = scale * signs  # of two chains
        estimate.add((step @ curvature) / step, rate=0.0)
    found = estimate.scale({"a": slice(0, 5), "b": slice(5, 12)})
    torch.testing.assert_close(found, scale, rtol=0.05, atol=0.0)


def test_a_curvature_that_is_not_positive_gives_no_wild_scale():
    estimate = Diagonal(torch.zeros(5), torch.zeros(5))
    estimate.add(torch.tensor([4.0, 4.0, 4.0, -9.0, 0.0]), rate=0.1)
    scale = estimate.scale({"a": slice(0, 5)})
    assert scale[:3].tolist() == [0.5] * 3
    assert scale[3].item() == pytest.approx((0.1 * 9.0) ** -0.5)
    assert scale[4].item() == pytest.approx((FLATTEST * 4.0) ** -0.5)


def test_power_iteration_gives_the_largest_curvature_of_scaled_weights():
    curvature, scale = matrix(12), torch.rand(12, generator=generator).double() + 0.5
    expected = float(torch.linalg.eigvalsh(scale[:, None] * curvature * scale)[-1])
    position = torch.randn(3, 12, generator=generator).double()
    estimate = Largest.start(position, torch.randn(3, 12, generator=generator).double())

    def gradient(x):
        return -x @ curvature

    for _ in range(10):
        rest = torch.randn(3, 12, generator=generator).double()
        estimate.update(gradient, position, scale, rest, 10)
    assert estimate.value == pytest.approx(expected, rel=0.02)
    before = estimate.value
    estimate.update(lambda x: x * math.nan, position, scale, rest, 3)
    assert estimate.value == before


def test_gradient_noise_has_the_temperature_of_its_formula():
    # The stationary variance of u' = c (u + k e) + ..., e of variance g: c^2 k^2 g / (1 - c^2).
    noise, eta, alpha, tau = 3.0, 0.01, 0.2, 2.0
    kept = math.exp(-alpha)
    after = kept**2 * eta * noise / (1 - kept**2) * tau  # after O, where KT is measured
    before = eta * noise / (1 - kept**2) * tau  # before
    assert after < excess_temperature(noise, eta, alpha, tau) < before
    found = GradientNoise(torch.zeros(4))
    for _ in range(2000):
        pair = torch.randn(2, 3, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0])
        found.add(*pair, rate=0.0)
    scale = torch.tensor([1.0, 0.5, 1.0, 0.5])
    sites = {"a": slice(0, 2), "b": slice(2, 4)}
    assert found.of_worst_site(scale, sites) == pytest.approx((9.0 + 4.0) / 2, rel=0.1)


@pytest.mark.parametrize("noise", [1e-6, 1.0, 1e4])
def test_the_floor_is_where_noise_alone_makes_the_excess(noise):
    lowest = floor(noise, 2.0, 10.0)
    assert lowest <= cap(10.0) * (1 + 1e-12)
    excess = excess_temperature(noise, lowest, friction_of(lowest), 2.0)
    assert excess <= EXCESS * (1 + 1e-6)
    assert lowest == pytest.approx(cap(10.0)) or excess == pytest.approx(EXCESS, rel=1e-6)


def test_the_step_size_stays_between_floor_and_cap():
    assert next_step_size(1e-3, 0.5, 0.5, 1e-9, 1.0) < 1e-3  # hot
    assert next_step_size(1e-3, 0.0, 0.5, 1e-9, 1.0) > 1e-3  # cold
    assert next_step_size(1e-3, EXCESS, 0.5, 1e-9, 1.0) == pytest.approx(1e-3)
    assert next_step_size(1e-3, 0.5, 0.0, 1e-9, 1.0) == 1e-3  # no feedback
    assert next_step_size(0.49, 0.0, 0.5, 1e-9, 1.0) == cap(1.0)
    lowest = next_step_size(1e-6, 9.0, 0.5, 1e-2, 1.0)
    assert 1e-6 < lowest < 1e-2  # hot, below the floor: it rises all the same


def test_temperatures_are_those_of_the_sites():
    sites = {"a": slice(0, 3), "b": slice(3, 5), "held": slice(5, 6)}
    found = Temperatures(torch.zeros(2, 6))
    spread = torch.tensor([1.0, 1.0, 1.0, 1.5, 1.5, 0.0])
    for _ in range(4000):
        found.add(torch.randn(2, 6, generator=generator) * spread / math.sqrt(2.0), tau=2.0)
    heat = found.by_site(sites)
    assert heat["a"] == pytest.approx(1.0, abs=0.03) and heat["b"] == pytest.approx(2.25, abs=0.1)
    assert heat["held"] == 1.0  # by pruning
    assert found.excess(sites, 1.0) == pytest.approx(1.25, abs=0.1)
    found.restart()
    assert found.steps == 0 and found.excess(sites, 1.0) <= 0.0


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_autocorrelation_times_of_autoregressions(kept):
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((20_000, 40))
    values = np.zeros_like(noise)
    for k in range(1, len(noise)):
        values[k] = kept * values[k - 1] + noise[k]
    times = autocorrelation_times(values)
    assert times.shape == (40,) and times.min() >= 1.0
    assert times.mean() == pytest.approx((1 + kept) / (1 - kept), rel=0.05)


def test_a_pilot_measures_the_slowest_weight_and_its_square():
    pilot = Pilot(torch.tensor([0, 2]))
    phase = 0.0
    for _ in range(500):
        phase += 0.9 * math.pi  # x flips, and its square turns slowly
        pilot.add(torch.tensor([math.cos(phase), 99.0, 0.0]))
    assert pilot.records[0].shape == (2,)
    assert pilot.slowest()[0] >= 4.0
    assert [steps_per_draw(time) for time in (1.0, 15.0, 1e6)] == [1, 8, MOST_STEPS]


@pytest.mark.parametrize("frequency", [0.3, 0.02])
def test_the_friction_of_the_slowest_direction_is_its_frequency(frequency):
    """By the time of a strongly damped direction, and again by that of one so damped."""
    strong = 20.0 * frequency
    assert friction_of_slowest(strong, 2.0 * strong / frequency**2) == pytest.approx(frequency)
    assert friction_of_slowest(frequency, 2.0 / frequency) == pytest.approx(frequency)
    assert friction_of_slowest(1e-2, 1e9) == SMALLEST_FRICTION
