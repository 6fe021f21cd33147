# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Gradient steps in unconstrained space."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_aeb.latents import GradientStep, Seen


def test_a_real_number_moves_by_the_step_times_the_gradient():
    update = GradientStep(0.1).of(dist.Normal(0.0, 1.0))
    assert update.update(Seen(torch.tensor(2.0), {}, {}, torch.tensor(-3.0))) == pytest.approx(1.7)


def test_a_positive_number_moves_in_its_logarithm():
    update = GradientStep(0.1).of(dist.Gamma(1.0, 1.0))
    # d/du of f(exp(u)) is exp(u) f'
    found = update.update(Seen(torch.tensor(2.0), {}, {}, torch.tensor(-3.0)))
    assert float(found) == pytest.approx(math.exp(math.log(2.0) - 0.1 * 2.0 * 3.0))


def test_shares_stay_shares():
    update = GradientStep(0.5).of(dist.Dirichlet(torch.ones(3)))
    value = torch.tensor([0.2, 0.3, 0.5])
    found = update.update(Seen(value, {}, {}, torch.tensor([5.0, 0.0, 0.0])))
    assert found.sum() == pytest.approx(1.0) and found[0] > 0.2


def test_steps_end_at_the_maximiser_over_the_value_itself():
    update = GradientStep(0.05).of(dist.Gamma(1.0, 1.0))
    value = torch.tensor(0.1, dtype=torch.float64)
    for _ in range(500):  # of 3 log x - 2 x, which is largest at 3/2
        value = update.update(Seen(value, {}, {}, 3.0 / value - 2.0))
    assert float(value) == pytest.approx(1.5)


@pytest.mark.parametrize("step_size", [0.0, -1.0, math.inf, math.nan])
def test_a_step_size_is_positive(step_size):
    with pytest.raises(
        ValueError, match="GradientStep: step_size is .* expected a finite number > 0"
    ):
        GradientStep(step_size)
