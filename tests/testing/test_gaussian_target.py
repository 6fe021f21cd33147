# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian target on which transitions with ``move`` are checked."""

import pytest
import torch

from pyro_aeb.testing.steps import Gaussian, advance, run_steps, target_at
from pyro_aeb.transitions import HMC, SGLD, StepNumbers
from pyro_aeb.transitions.base import noise_size

CURVATURE = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([-1.0, 3.0], dtype=torch.float64)
GAUSSIAN = Gaussian(CURVATURE, MEAN)


def random_tensor(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("part", ["whole", "batch"])
@pytest.mark.parametrize("prior", [True, False])
def test_gradients_are_those_of_the_log_density(part, prior):
    position = random_tensor(3, 4).requires_grad_()  # three chains of two copies
    target = target_at(random_tensor(3, 4), random_tensor(3, 4), 5, GAUSSIAN)
    found = getattr(target, part)(position, prior)
    assert found.log_density.shape == (3,) and target.step == 5
    (gradient,) = torch.autograd.grad(found.log_density.sum(), position)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-12, atol=1e-12)


def test_the_batch_has_the_gradient_that_was_asked_for_and_all_data_that_of_q():
    position, gradient = random_tensor(3, 4), random_tensor(3, 4)
    target = target_at(position, gradient, 1, GAUSSIAN)
    torch.testing.assert_close(target.batch(position).gradient, gradient, rtol=1e-12, atol=1e-12)
    away = position.reshape(3, 2, 2) - MEAN
    expected = (-away @ CURVATURE).reshape(3, 4)
    torch.testing.assert_close(target.whole(position).gradient, expected, rtol=1e-12, atol=1e-12)
    quadratic = -0.5 * torch.einsum("cpi,ij,cpj->c", away, CURVATURE, away)
    torch.testing.assert_close(target.whole(position).log_density, quadratic)


def test_a_quarter_of_it_is_prior():
    position = random_tensor(3, 4)
    target = target_at(position, random_tensor(3, 4), 1, GAUSSIAN)
    with_, without = target.whole(position), target.whole(position, prior=False)
    torch.testing.assert_close(without.gradient, 0.75 * with_.gradient)
    difference = target.batch(position).gradient - target.batch(position, prior=False).gradient
    torch.testing.assert_close(difference, 0.25 * with_.gradient)


def test_steps_of_both_kinds():
    position, numbers = random_tensor(2), StepNumbers(0.1, 2.0)
    assert noise_size(SGLD(0.1), 2) == 2 and noise_size(HMC(0.1), 2) == 4
    z = random_tensor(2)
    found = advance(SGLD(0.1), SGLD(0.1).init(position), -position, z, numbers)
    expected = SGLD(0.1).step(SGLD(0.1).init(position), -position, z, numbers)
    assert torch.equal(found.position, expected.position)
    assert len(run_steps(HMC(0.1), position, random_tensor(4, 3))) == 5
