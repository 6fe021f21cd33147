# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Stationary laws of discretised chains on Gaussian targets, in closed form.

The stationary law of a chain with steps of finite size is near exp(tau Q). For linear schemes
:class:`~pyro_aeb.testing.linear.LinearScheme` computes it to rounding. :func:`check_stationary_law`
requires that its mean is the target's, and that its covariance tends to the target's as steps
shrink, at every temperature.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyro_aeb.testing.linear import Array, LinearScheme, linear_scheme
from pyro_aeb.testing.reports import Outcome, Report, require
from pyro_aeb.transitions import AnyTransition, StepNumbers

GradientVariance = Callable[[StepNumbers], float]
"""The variance of the error of every coordinate of the gradient, at some step numbers."""

CURVATURE: Array = np.array([[2.0, 0.6], [0.6, 0.5]])
MEAN: Array = np.array([-1.0, 3.0])
STANDARD_NORMAL = (np.eye(1), np.zeros(1))
TEMPERATURES = (0.25, 1.0, 4.0)
"""Inverse temperatures tau of the checks."""


def sgld_variance(
    step_size: float, tau: float, curvature: float, gradient_variance: float = 0.0
) -> float:
    r"""
    Return the stationary variance of SGLD, :math:`s^2 / (1 - (1 - \epsilon h)^2)` with
    :math:`s^2 = 2 \epsilon / \tau + \epsilon^2 g`; for g = 0 it is
    :math:`1 / (\tau h (1 - \epsilon h / 2))`.

    :param float step_size: step size epsilon.
    :param float tau: inverse temperature.
    :param float curvature: curvature h; Q is :math:`-h (\beta - m)^2 / 2`.
    :param float gradient_variance: variance g of the noise of the gradient.
    """
    s2 = 2.0 * step_size / tau + step_size**2 * gradient_variance
    return s2 / (1.0 - (1.0 - step_size * curvature) ** 2)


def sghmc_covariance(
    step_size: float,
    tau: float,
    curvature: float,
    friction: float,
    gradient_noise: float = 0.0,
    gradient_variance: float = 0.0,
) -> Array:
    r"""
    Return the stationary covariance V of SGHMC's momentum and position, in this order, shape (2,
    2): the solution of :math:`V = M V M^T + s^2 (1, 1)^T (1, 1)` with

    .. math::
        M = \begin{pmatrix} 1 - \alpha & -\eta h \\ 1 - \alpha & 1 - \eta h \end{pmatrix}, \quad
        s^2 = 2 \eta (\alpha - \hat\beta) / \tau + \eta^2 g.

    :param float step_size: step size eta.
    :param float tau: inverse temperature.
    :param float curvature: curvature h; Q is :math:`-h (\beta - m)^2 / 2`.
    :param float friction: friction alpha.
    :param float gradient_noise: estimate beta hat that is subtracted from the injected noise.
    :param float gradient_variance: variance g of the noise of the gradient.
    """
    keep, pull = 1.0 - friction, step_size * curvature
    m = np.array([[keep, -pull], [keep, 1.0 - pull]])
    s2 = 2.0 * step_size * (friction - gradient_noise) / tau + step_size**2 * gradient_variance
    # vec(M V M^T) = (M kron M) vec(V)
    return np.linalg.solve(np.eye(4) - np.kron(m, m), np.full(4, s2)).reshape(2, 2)


def target_variance(tau: float, curvature: float) -> float:
    r"""Return the variance of exp(tau Q), :math:`1 / (\tau h)`."""
    return 1.0 / (tau * curvature)


def stability_limit(transition: AnyTransition, tau: float = 1.0) -> float:
    """
    Return the largest step size at which the chain is stable on a Gaussian of curvature 1, to six
    digits.

    :param transition: a transition that is linear on Gaussians.
    :param float tau: inverse temperature.
    :raises AssertionError: if the chain is not stable at any step size down to 2^-20.
    :raises ValueError: if the transition is not linear on Gaussians.
    """
    low = _stable_step_size(transition, tau, STANDARD_NORMAL)
    high = low
    while high < 2.0**20 and _scheme(transition, high, tau).spectral_radius < 1.0:
        low, high = high, 2.0 * high
    while high - low > 1e-7 * high:
        middle = 0.5 * (low + high)
        stable = _scheme(transition, middle, tau).spectral_radius < 1.0
        low, high = (middle, high) if stable else (low, middle)
    return low


def check_stationary_law(
    transition: AnyTransition, gradient_variance: GradientVariance | None = None
) -> Report:
    r"""
    Check the stationary law of a transition that is linear on Gaussians.

    On a correlated Gaussian of two coordinates, at three temperatures, the covariance V of the
    discretised chain is computed at step sizes that are halved, and extrapolated to 0 by
    :math:`2 V(\epsilon / 2) - V(\epsilon)`, until it converges to 1e-4. It must be the target's,
    :math:`(\tau H)^{-1}`, to 1e-3; the mean must be the target's to rounding. Nothing is random.

    :param transition: the transition.
    :param gradient_variance: variance of the noise of the gradient that the transition corrects
        for, as a function of step numbers: 2 beta hat / (eta tau) for SGHMC's ``gradient_noise``.
    :returns: the outcomes of the checks.
    :raises AssertionError: if the law is not that of the target.
    :raises ValueError: if the transition is not linear.
    """
    ratios, order = {}, ""
    for tau in TEMPERATURES:
        limit, order = _extrapolate_covariance(transition, tau, gradient_variance)
        ratios[tau] = tau * limit @ CURVATURE  # the identity, for a correct sampler
    scales = {tau: float(np.trace(ratio) / len(ratio)) for tau, ratio in ratios.items()}
    for tau, ratio in ratios.items():
        require(
            bool(np.abs(ratio - np.eye(2)).max() < 1e-3),
            f"stationary covariance, tau = {tau:g}",
            f"{scales[tau]:.4g} times the target's as steps shrink",
            "1 time, (tau H)^-1",
            _diagnose(scales),
        )
    outcomes = (
        Outcome("stationary mean", "the target's, to rounding"),
        Outcome("stationary covariance", f"tends to (tau H)^-1 at tau = {TEMPERATURES}; {order}"),
        Outcome("bias of the variance", _describe_bias(transition, gradient_variance)),
        Outcome("stability", f"step size x curvature below {stability_limit(transition):.4g}"),
    )
    return Report(repr(transition), outcomes)


def _scheme(
    transition: AnyTransition,
    step_size: float,
    tau: float,
    target: tuple[Array, Array] = STANDARD_NORMAL,
) -> LinearScheme:
    scheme = linear_scheme(transition, *target, StepNumbers(step_size, tau))
    if scheme is None:
        raise ValueError(
            f"{transition!r} is not linear on Gaussians at step size {step_size:g}; "
            "check_simulated_law checks it by simulation"
        )
    return scheme


def _stable_step_size(transition: AnyTransition, tau: float, target: tuple[Array, Array]) -> float:
    step_size = 2.0**-3
    while step_size > 2.0**-20:
        if _scheme(transition, step_size, tau, target).spectral_radius < 1.0:
            return step_size
        step_size /= 2.0
    radius = _scheme(transition, step_size, tau, target).spectral_radius
    raise AssertionError(
        f"stability: found a spectral radius of {radius:.9g} at step size {step_size:g}, expected "
        "less than 1 at some step size; the chain diverges on a Gaussian: look at the sign of the "
        "gradient, and whether the step uses it"
    )


def _extrapolate_covariance(
    transition: AnyTransition, tau: float, gradient_variance: GradientVariance | None
) -> tuple[Array, str]:
    """Return the covariance extrapolated to steps of size 0, and a text on its convergence."""
    step_size = _stable_step_size(transition, tau, (CURVATURE, MEAN))
    covariances: list[Array] = []
    limits: list[Array] = []
    for _ in range(20):
        numbers = StepNumbers(step_size, tau)
        scheme = _scheme(transition, step_size, tau, (CURVATURE, MEAN))
        _check_mean(scheme, numbers)
        variance = gradient_variance(numbers) if gradient_variance else 0.0
        covariances.append(scheme.position_covariance(variance))
        if len(covariances) > 1:
            limits.append(2.0 * covariances[-1] - covariances[-2])
        if len(limits) > 1 and _distance(limits[-1], limits[-2]) < 1e-4:
            break
        step_size /= 2.0
    limit = limits[-1]
    if _distance(covariances[-3], limit) < 1e-7:
        return limit, "exact at any step size"
    ratio = _distance(covariances[-3], limit) / _distance(covariances[-2], limit)
    return limit, f"order {np.log2(ratio):.1f} in the step size"


def _distance(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def _check_mean(scheme: LinearScheme, numbers: StepNumbers) -> None:
    mean = scheme.mean()[: scheme.size]
    require(
        bool(np.abs(mean - MEAN).max() < 1e-6),
        f"stationary mean, step size {numbers.step_size:g}, tau = {numbers.inverse_temperature:g}",
        mean,
        MEAN,
        "at a zero of the gradient the chain must stay: look for a force that is not the "
        "gradient's",
    )


def _describe_bias(transition: AnyTransition, gradient_variance: GradientVariance | None) -> str:
    """Describe the relative error of the variance to first order in step size x curvature."""

    def per_step_size(step_size: float) -> float:
        numbers = StepNumbers(step_size, 1.0)
        variance = gradient_variance(numbers) if gradient_variance else 0.0
        covariance = _scheme(transition, *numbers).position_covariance(variance)
        return float(covariance[0, 0] - 1.0) / step_size

    small = min(2.0**-7, stability_limit(transition) / 8.0)
    first_order = 2.0 * per_step_size(small / 2.0) - per_step_size(small)
    return f"{round(first_order, 4):+.3g} x step size x curvature, to first order"


def _diagnose(ratios: dict[float, float]) -> str:
    """Explain ratios of the variance to the target's, by tau."""
    taus, values = np.array(list(ratios)), np.array(list(ratios.values()))
    if values.min() <= 0.0:
        return "look at the noise: does the step use it?"
    power, log_ratio = np.polyfit(np.log(taus), np.log(values), 1)
    if abs(power) < 0.01:
        factor = np.exp(log_ratio)
        return (
            f"the injected noise has {factor:.4g} times the variance it should have at every "
            "temperature: look at its scale (2 step_size / tau for SGLD). If the transition "
            "subtracts an estimate of the gradient's noise, set gradient_variance"
        )
    return (
        f"the error grows like tau^{power:.2g}: look at how the step uses the inverse temperature "
        "(noise of variance proportional to 1/tau; the gradient is not multiplied by it)"
    )
