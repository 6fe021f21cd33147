# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks that apply to a transition."""

from __future__ import annotations

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
    Whether a transition keeps its contract and samples its target::

        print(pyro_aeb.testing.check_transition(MySampler(1e-3)))

    The contract is checked by :func:`~pyro_aeb.testing.contract.check_contract`. A transition that
    is linear on Gaussians then has its stationary law computed and compared, by
    :func:`~pyro_aeb.testing.stationary.check_stationary_law`; any other is simulated, by
    :func:`~pyro_aeb.testing.simulation.check_simulated_law`. Step sizes are the checks' own. One
    that asks for Q itself gets that of the Gaussian, with an exact gradient.

    :param transition: the transition, with ``step`` or ``move``.
    :param gradient_variance: for a transition that makes up for noise in the gradient, that noise's
        variance at some step numbers; see ``check_stationary_law``.
    :param float step_size: of a simulation.
    :param float tolerance: of a simulation's moments, relative.
    :param int seed: of a simulation.
    :returns: what was found.
    :raises AssertionError: if a check fails: what was found, what was expected, what it means.
    """
    contract = check_contract(transition)
    if linear_scheme(transition, CURVATURE, MEAN, NUMBERS) is not None:
        kind = Outcome("kind", "linear on Gaussians: its stationary law is known to rounding")
        law = check_stationary_law(transition, gradient_variance)
    else:
        kind = Outcome("kind", "not linear on Gaussians: checked by simulation")
        law = check_simulated_law(transition, step_size, tolerance, seed=seed)
    return Report(repr(transition), (*contract.outcomes, kind, *law.outcomes))
