# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks of a transition."""

from __future__ import annotations

from pyro_aeb.testing.compiled import check_compiled_step
from pyro_aeb.testing.contract import check_contract
from pyro_aeb.testing.linear import linear_scheme
from pyro_aeb.testing.reports import Outcome, Report
from pyro_aeb.testing.simulation import check_simulated_law
from pyro_aeb.testing.stationary import (
    CURVATURE,
    MEAN,
    GradientVariance,
    check_stationary_law,
)
from pyro_aeb.testing.steps import NUMBERS
from pyro_aeb.transitions import AnyTransition


def check_transition(
    transition: AnyTransition,
    gradient_variance: GradientVariance | None = None,
    step_size: float = 0.02,
    tolerance: float = 0.1,
    seed: int = 0,
) -> Report:
    """
    Check that a transition keeps its contract and samples its target::

        print(pyro_aeb.testing.check_transition(MySampler(1e-3)))

    The contract is checked by :func:`~pyro_aeb.testing.contract.check_contract`. The operations of
    a step that the kernel compiles must make the same steps. If a transition is
    linear on Gaussians, its stationary law is computed and compared by
    :func:`~pyro_aeb.testing.stationary.check_stationary_law`; otherwise it is simulated by
    :func:`~pyro_aeb.testing.simulation.check_simulated_law`. The checks choose step sizes. A
    transition that evaluates Q gets that of the Gaussian, with an exact gradient.

    :param transition: the transition, with ``step`` or ``move``.
    :param gradient_variance: variance of the noise of the gradient that the transition corrects
        for, as a function of step numbers; see ``check_stationary_law``.
    :param float step_size: step size of a simulation.
    :param float tolerance: relative tolerance of a simulation's moments.
    :param int seed: seed of a simulation.
    :returns: the outcomes of the checks.
    :raises AssertionError: if a check fails: what was found, what was expected, what it means.
    """
    contract, compiled = check_contract(transition), check_compiled_step(transition)
    if linear_scheme(transition, CURVATURE, MEAN, NUMBERS) is not None:
        kind = Outcome("kind", "linear on Gaussians: its stationary law is computed to rounding")
        law = check_stationary_law(transition, gradient_variance)
    else:
        kind = Outcome("kind", "not linear on Gaussians: checked by simulation")
        law = check_simulated_law(transition, step_size, tolerance, seed=seed)
    return Report(repr(transition), (*contract.outcomes, compiled, kind, *law.outcomes))
