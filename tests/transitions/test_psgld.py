# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The preconditioner, term by term, and the law with and without its correction."""

import math
import re

import numpy as np
import pytest
import torch

from pyro_aeb.testing import assert_agrees, assert_tells_apart, replicates, sgld_variance
from pyro_aeb.testing.steps import STANDARD_NORMAL, target_at
from pyro_aeb.transitions import PSGLD, SGLD, PSGLDState, SGLDState, StepNumbers
from pyro_aeb.transitions.base import noise_size

position = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
gradient = torch.tensor([0.3, 0.0, -4.0], dtype=torch.float64)
noise = torch.tensor([-1.0, 2.0, 0.25], dtype=torch.float64)
square = torch.tensor([2.0, 0.0, 9.0], dtype=torch.float64)


def move(transition, state, noise, numbers, k, gradient=None):
    gradient = -state.position if gradient is None else gradient
    target = target_at(state.position, gradient, k)
    return transition.move(state, target.batch(state.position), noise, numbers, target)


def test_a_step_is_the_three_lines_of_its_docstring():
    epsilon, tau, k = 0.08, 2.0, 3
    transition = PSGLD(1.0, decay=0.9, damping=0.5)
    numbers = StepNumbers(epsilon, tau)
    after = move(transition, PSGLDState(position, square), noise, numbers, k, gradient)
    v = 0.9 * square + 0.1 * gradient**2
    torch.testing.assert_close(after.square, v, rtol=1e-14, atol=1e-16)
    g = 1 / (0.5 + (v / (1 - 0.9**3)).sqrt())
    expected = position + epsilon * g * gradient + (2 * epsilon * g / tau).sqrt() * noise
    torch.testing.assert_close(after.position, expected, rtol=1e-13, atol=0.0)


def test_the_first_step_is_of_the_size_of_the_step_size():
    # V / (1 - decay) is the square of the one gradient that there is, whatever the decay.
    for decay in (0.0, 0.9, 0.999):
        steep = torch.tensor([1e4, -1e6], dtype=torch.float64)
        start = PSGLD(1.0, decay).init(torch.zeros(2).double())
        after = move(
            PSGLD(1.0, decay), start, torch.zeros(2).double(), StepNumbers(0.1, 1.0), 1, steep
        )
        torch.testing.assert_close(after.position, 0.1 * steep.sign(), rtol=1e-3, atol=0.0)


def test_once_it_stops_adapting_it_is_sgld_with_a_step_size_for_every_weight():
    epsilon, tau = 0.08, 2.0
    transition = PSGLD(1.0, decay=0.9, damping=0.5, correction=True, adapt_until=4)
    state = transition.init(position)._replace(square=square)
    z = torch.cat([noise, noise])
    for k in (5, 500):
        after = move(transition, state, z, StepNumbers(epsilon, tau), k, gradient)
        assert torch.equal(after.square, square) and torch.equal(after.slope, state.slope)
        for i, v in enumerate(square / (1 - 0.9**4)):
            own = StepNumbers(epsilon / (0.5 + float(v) ** 0.5), tau)
            plain = SGLD(1.0).step(SGLDState(position), gradient, noise, own)
            torch.testing.assert_close(after.position[i], plain.position[i], rtol=1e-13, atol=0.0)


def test_the_correction_is_the_derivative_of_the_preconditioner():
    """With a decay of 0, V is the square of the gradient, so G is a function of the position."""
    epsilon, tau, damping = 1e-3, 2.0, 0.7
    numbers = StepNumbers(epsilon, tau)
    with_, without = PSGLD(1.0, 0.0, damping, correction=True), PSGLD(1.0, 0.0, damping)
    z = torch.cat([noise, noise.flip(0)])
    found = move(with_, with_.init(position), z, numbers, 1)
    plain = move(without, without.init(position), noise, numbers, 1)
    x = position.clone().requires_grad_()
    (slope,) = torch.autograd.grad((1 / (damping + x.abs())).sum(), x)  # the gradient is -x
    shift = found.position - plain.position
    torch.testing.assert_close(shift, epsilon / tau * slope, rtol=1e-6, atol=0.0)


def test_the_estimate_of_the_hessian_is_unbiased_over_the_signs():
    curvature = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)

    class Quadratic:
        step = 1

        def batch(self, position, prior=True):
            return target_at(position, -position @ curvature).batch(position)

    at, spread = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.1, 0.02]).double()
    signs = [(a, b) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    found = [PSGLD._hessian(at, spread * torch.tensor(s).double(), Quadratic()) for s in signs]
    mean = torch.stack(found).mean(0)
    torch.testing.assert_close(mean, -curvature.diagonal(), rtol=1e-9, atol=0.0)


# -- the law

CHAINS, STEPS, EPSILON = 100, 2500, 0.02


def mean_squares(transition, coordinates=20, warmup=500):
    """
    Of every chain of independent standard normal coordinates the mean square, at tau = 1, with the
    step size EPSILON.
    """
    generator = torch.Generator().manual_seed(2)
    state = transition.init(
        torch.randn(CHAINS, coordinates, generator=generator, dtype=torch.float64)
    )
    z = torch.empty(CHAINS, noise_size(transition, coordinates), dtype=torch.float64)
    total = torch.zeros(CHAINS, dtype=torch.float64)
    for k in range(1, STEPS + 1):
        z.normal_(generator=generator)
        state = move(transition, state, z, StepNumbers(EPSILON, 1.0), k)
        if k > warmup:
            total += state.position.square().mean(-1)
    return replicates(total / (STEPS - warmup))


def test_if_v_follows_the_chain_the_law_without_correction_is_the_target_over_g():
    """
    With V the square of the gradient, the step has mean epsilon G grad Q and variance 2 epsilon G:
    the law exp(Q) / G, here proportional to (1 + |x|) exp(-x^2 / 2), whose variance is
    (E x^2 + E |x|^3) / (1 + E |x|) = (1 + 2 c) / (1 + c) with c = E |x| = sqrt(2 / pi).
    """
    c = math.sqrt(2 / math.pi)
    predicted = (1 + 2 * c) / (1 + c)
    plain, error = mean_squares(PSGLD(EPSILON, decay=0.0))
    assert abs(plain - predicted) < EPSILON + 5 * error  # its step's own bias is of that order
    assert_tells_apart(plain, 1.0, error)
    corrected, error = mean_squares(PSGLD(EPSILON, decay=0.0, correction=True))
    assert abs(corrected - 1.0) < EPSILON + 5 * error


def test_with_memory_the_correction_removes_most_of_the_bias():
    """
    With V in between, neither a function of the position nor constant, there is no closed form; the
    correction leaves less than a fifth of what is wrong without it.
    """
    plain, _ = mean_squares(PSGLD(EPSILON, decay=0.9))
    corrected, _ = mean_squares(PSGLD(EPSILON, decay=0.9, correction=True))
    assert plain > 1.3 and abs(corrected - 1.0) < (plain - 1.0) / 5


def test_a_preconditioner_that_has_stopped_has_the_bias_of_sgld_alone():
    """
    At step k = 1 the chain is at x and V = x^2, so G = 1 / (1 + |x|) from then on: the variance of
    each coordinate is that of SGLD with the step size epsilon G.
    """
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(CHAINS, 20, generator=generator, dtype=torch.float64)
    steps = EPSILON / (1 + start.abs())
    expected = np.vectorize(sgld_variance)(steps.numpy(), 1.0, 1.0).mean()
    found, error = mean_squares(PSGLD(EPSILON, adapt_until=1))
    assert_agrees(found, expected, error)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_outside_0_1_is_refused(decay):
    with pytest.raises(
        ValueError, match=re.escape(f"decay is {decay}, expected a number in [0, 1)")
    ):
        PSGLD(0.1, decay)


def test_junk_is_refused():
    with pytest.raises(ValueError, match="damping is 0, expected a finite number > 0"):
        PSGLD(0.1, damping=0)
    with pytest.raises(TypeError, match="correction is 1, expected True or False"):
        PSGLD(0.1, correction=1)
    with pytest.raises(
        ValueError, match="adapt_until is 0, expected an integer of at least 1, the last step"
    ):
        PSGLD(0.1, adapt_until=0)


def test_the_target_of_these_tests_is_the_standard_normal():
    assert torch.equal(STANDARD_NORMAL.evaluate(position).gradient, -position)


if __name__ == "__main__":  # the table of docs/samplers.md
    print("| decay | no correction | `correction=True` | `adapt_until=500` |")
    print("| --- | --- | --- | --- |")
    for decay in (0.0, 0.9, 0.99, 0.999):
        ways: list[dict] = [{}, {"correction": True}, {"adapt_until": 500}]
        cells = [mean_squares(PSGLD(EPSILON, decay, **way)) for way in ways]
        text = " | ".join(f"{mean:.3f} +- {error:.3f}" for mean, error in cells)
        print(f"| {decay} | {text} |")
