# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The law of a transition that is not linear, by simulation: one with a thermostat, a preconditioner
or an accept-reject decision.

Many chains start from the target, a Gaussian, and step together. A correct sampler keeps this law,
up to its bias at this step size; a wrong one converges to another. Each chain gives one independent
estimate of every moment, so the tests of :mod:`pyro_aeb.testing.sequential` apply. The gradient is
exact. If a transition weights its draws (``log_weight`` in its statistics), moments are weighted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyro_aeb.testing.reports import Outcome, Report
from pyro_aeb.testing.sequential import STANDARD, SequentialPlan, check_mean
from pyro_aeb.testing.stationary import CURVATURE, MEAN, TEMPERATURES
from pyro_aeb.testing.steps import Gaussian, advance, target_at
from pyro_aeb.transitions import AnyTransition, StepNumbers, statistics_of
from pyro_aeb.transitions.base import noise_size

PAIRS = 5
"""Number of independent copies of the two coordinates in a chain."""

EXPECTED = np.array([0.0, 0.0, 1.0, 1.0])
"""Means and mean squares along both axes, in units of the target's standard deviations."""


def check_simulated_law(
    transition: AnyTransition,
    step_size: float = 0.02,
    tolerance: float = 0.1,
    steps: int = 300,
    chains: int = 500,
    seed: int = 0,
    plan: SequentialPlan = STANDARD,
) -> Report:
    r"""
    Check the stationary moments of any transition, by simulation, at three temperatures.

    The target is :math:`\exp(\tau Q)` of a Gaussian with curvatures 0.3 and 2.2. Means along both
    axes must be the target's within ``tolerance`` standard deviations, and variances within a
    relative ``tolerance``, which allows for the discretisation bias at this step size. A sampler
    within it fails with a probability of at most the plan's false-alarm rate per temperature.

    :param transition: the transition.
    :param float step_size: step size of the simulation. The largest curvature is 2.2.
    :param float tolerance: relative tolerance of moments.
    :param int steps: number of steps that are discarded, and again of those averaged over.
    :param int chains: number of chains in the first round.
    :param int seed: seed of the random numbers.
    :param SequentialPlan plan: false-alarm rate and rounds.
    :returns: the outcome of the check.
    :raises AssertionError: if the moments are not the target's.
    """
    verdicts = []
    for tau in TEMPERATURES:
        numbers = StepNumbers(step_size, tau)

        def draw(size: int, rng: np.random.Generator, numbers: StepNumbers = numbers) -> Any:
            return _moments(transition, numbers, steps, size, rng)

        try:
            verdicts.append(check_mean(draw, EXPECTED, tolerance, chains, seed, plan))
        except (AssertionError, ValueError) as error:
            raise AssertionError(
                f"simulated law, tau = {tau:g}, step size {step_size:g}: {error}. The numbers are "
                "the means along both axes in standard deviations of the target, and the "
                "variances over the target's: look at the noise's scale and at how the step uses "
                "tau, or allow for the bias of such steps with a smaller step_size"
            ) from error
    worst = min(p for verdict in verdicts for p in verdict.p_values)
    result = (
        f"means and variances within {tolerance:g} of the target's at step size {step_size:g}, "
        f"tau = {TEMPERATURES}; least p {worst:.2g}, false-alarm rate {plan.false_alarm:g} per tau"
    )
    return Report(repr(transition), (Outcome("simulated law", result),))


def _moments(
    transition: AnyTransition,
    numbers: StepNumbers,
    steps: int,
    chains: int,
    rng: np.random.Generator,
) -> Any:
    """
    Return means and mean squares along the axes of the target, shape (chains, 4). With weights, a
    chain's value is its weighted sum of deviations from the target's moments, over the mean of all
    chains' sums of weights: the mean of these values deviates as the weighted moments do.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    values, axes = (torch.from_numpy(a) for a in np.linalg.eigh(CURVATURE))
    scale = (numbers.inverse_temperature * values).rsqrt()
    gaussian = Gaussian(torch.from_numpy(CURVATURE), torch.from_numpy(MEAN))
    shape = (chains, PAIRS, 2)
    whitened = torch.randn(shape, generator=generator, dtype=torch.float64)
    state = transition.init((gaussian.mean + (whitened * scale) @ axes.T).reshape(chains, -1))
    noise = torch.empty(chains, noise_size(transition, 2 * PAIRS), dtype=torch.float64)
    expected = torch.from_numpy(EXPECTED)
    sums, total = torch.zeros(chains, 4, dtype=torch.float64), 0.0
    for k in range(1, 2 * steps + 1):
        before, gradient = state, gaussian.evaluate(state.position).gradient
        z = noise.normal_(generator=generator)
        state = advance(transition, before, gradient, z, numbers, k, gaussian)
        if k > steps:
            target = target_at(before.position, gradient, k, gaussian)
            statistics = statistics_of(transition, before, state, numbers, target)
            weight = statistics.get("log_weight", torch.zeros(chains)).double().exp().unsqueeze(-1)
            whitened = ((state.position.reshape(shape) - gaussian.mean) @ axes) / scale
            moments = torch.cat([whitened.mean(1), whitened.square().mean(1)], 1)
            sums += weight * (moments - expected)
            total += float(weight.mean())
    return (sums / total + expected).numpy()
