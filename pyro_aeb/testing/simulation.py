# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The law of a transition that is not linear, by simulation: a thermostat, a preconditioner, a
decision.

Many chains start from the target itself, a Gaussian, and step together. A correct sampler stays
there, up to its bias at this step size; a wrong one leaves for its own law. Each chain gives one
independent figure for every moment, so the tests of :mod:`pyro_aeb.testing.sequential` apply. The
gradient is exact. Where a transition gives its draws weights (``log_weight`` in its statistics),
moments are weighted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyro_aeb.testing.reports import Outcome, Report
from pyro_aeb.testing.sequential import STANDARD, SequentialPlan, check_mean
from pyro_aeb.testing.stationary import CURVATURE, MEAN, TEMPERATURES
from pyro_aeb.testing.steps import Gaussian, advance, noise_size, target_at
from pyro_aeb.transitions import AnyTransition, StepNumbers, statistics_of

PAIRS = 5
"""How many independent copies of the two coordinates a chain has."""

EXPECTED = np.array([0.0, 0.0, 1.0, 1.0])
"""Means and mean squares along both axes, in units of the target's."""


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
    The stationary moments of any transition, by simulation, at three temperatures.

    The target is :math:`\exp(\tau Q)` of Gaussians whose curvatures are 0.3 and 2.2. Means must be
    the target's within ``tolerance`` of a standard deviation and variances along both axes within a
    share ``tolerance``, which is what the discretisation may bias them by at this step size; a
    sampler within it fails with a probability of at most the plan's false-alarm rate a temperature.

    :param transition: the transition.
    :param float step_size: of the simulation. The largest curvature is 2.2.
    :param float tolerance: of moments, relative.
    :param int steps: that a chain makes to leave its start, and again to be averaged over.
    :param int chains: in the first round.
    :param int seed: of the random numbers.
    :param SequentialPlan plan: false-alarm rate and rounds.
    :returns: what was found.
    :raises AssertionError: if the moments are others.
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
                f"simulated law, tau = {tau:g}, step size {step_size:g}: {error}. The figures are "
                "the means along both axes in standard deviations of the target, and the "
                "variances over the target's: look at the noise's scale and at how the step uses "
                "tau, or allow for the bias of such steps with a smaller step_size"
            ) from error
    worst = min(p for verdict in verdicts for p in verdict.p_values)
    result = (
        f"means and variances within {tolerance:g} of the target's at step size {step_size:g}, "
        f"tau = {TEMPERATURES}; least p {worst:.2g}, false-alarm rate {plan.false_alarm:g} a tau"
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
    Of every chain the means and mean squares along the axes of the target, shape (chains, 4). With
    weights, a chain's figure is its weighted sum of what is off from the target's moments, over the
    mean of all chains' sums of weights: their mean is off by what the weighted moments are.
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
        before, gradient = state, gaussian.evaluated(state.position).gradient
        z = noise.normal_(generator=generator)
        state = advance(transition, before, gradient, z, numbers, k, gaussian)
        if k > steps:
            target = target_at(before.position, gradient, k, gaussian)
            figures = statistics_of(transition, before, state, numbers, target)
            weight = figures.get("log_weight", torch.zeros(chains)).double().exp().unsqueeze(-1)
            whitened = ((state.position.reshape(shape) - gaussian.mean) @ axes) / scale
            moments = torch.cat([whitened.mean(1), whitened.square().mean(1)], 1)
            sums += weight * (moments - expected)
            total += float(weight.mean())
    return (sums / total + expected).numpy()
