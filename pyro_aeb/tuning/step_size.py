# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Step size and friction, from curvature, gradient noise and kinetic temperature."""

from __future__ import annotations

import math

from pyro_aeb.tuning.noise import excess_temperature

SHARE = 0.5
"""The largest step size, times the largest curvature; BAOAB is stable below 4."""

UNKNOWN = 1e-6
"""The largest step size where no gradient was finite, and so no curvature is known."""

EXCESS = 0.05
"""The share by which minibatch noise may raise the temperature, and widen variances."""

GROWTH, FALL = 0.3, -0.7
"""The largest changes of the logarithm of the step size at once."""

SMALLEST_FRICTION = 0.003


def cap(largest: float) -> float:
    """Return the largest step size for a largest curvature; a small one where none was found."""
    return SHARE / largest if largest > 0.0 else UNKNOWN


def friction_of(step_size: float, least: float = SMALLEST_FRICTION) -> float:
    """Return the friction that forgets the momentum in one unit of time, within bounds."""
    return min(max(math.sqrt(step_size), least), 1.0)


def friction_of_slowest(friction: float, time: float) -> float:
    r"""
    Return the friction that a direction asks for whose autocorrelation time, at some friction, is
    as given: with the frequency :math:`\omega` that time is :math:`2 \alpha / \omega^2` steps, and
    that of its square, too, is short for :math:`\alpha = \omega`.
    """
    return max(math.sqrt(2.0 * friction / time), SMALLEST_FRICTION)


def floor(noise: float, tau: float, largest: float) -> float:
    """
    Return the step size, at most the cap, at which independent gradient noise alone would raise the
    temperature by :data:`EXCESS`. Noise that cancels within an epoch allows for more.
    """
    low, high = math.log(1e-30), math.log(cap(largest))

    def excess(logarithm: float) -> float:
        step_size = math.exp(logarithm)
        return excess_temperature(noise, step_size, friction_of(step_size), tau)

    if excess(high) <= EXCESS:
        return math.exp(high)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) < EXCESS else (low, middle)
    return math.exp(low)


def next_step_size(
    step_size: float, excess: float, gain: float, lowest: float, largest: float
) -> float:
    """
    Return the step size of the next window with minibatches.

    :param float excess: of the worst temperature above 1.
    :param float gain: of the feedback; 0 for a chain that is hot on its way to the target.
    :param float lowest: see :func:`floor`.
    :param float largest: the largest curvature.
    """
    change = gain * math.log(EXCESS / max(excess, 0.1 * EXCESS))
    proposed = step_size * math.exp(max(FALL, min(GROWTH, change)))
    if proposed < lowest:
        proposed = min(step_size * math.exp(GROWTH), lowest)
    return min(proposed, cap(largest))
