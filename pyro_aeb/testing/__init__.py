# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Checks that samplers, updates of latents and models have the law that they claim.

Each returns its outcome, or raises an AssertionError that says what was found, what was expected
and what that means. Three run all checks of one kind of object::

    import pyro_aeb as aeb

    aeb.testing.check_transition(MySampler(1e-3))
    aeb.testing.check_model(model, X[:6], y[:6], batch_size=2)
    aeb.testing.check_adaptation(model, X, y)

The others are their parts, and statistical tests of draws.
"""

from pyro_aeb.testing.adaptation import check_adaptation
from pyro_aeb.testing.contract import check_contract
from pyro_aeb.testing.enumeration import check_unbiased_gradient, minibatches
from pyro_aeb.testing.linear import LinearScheme, linear_scheme
from pyro_aeb.testing.m_steps import check_m_step
from pyro_aeb.testing.model import check_gradient, check_model
from pyro_aeb.testing.monte_carlo import (
    assert_agrees,
    assert_tells_apart,
    batch_means,
    replicates,
)
from pyro_aeb.testing.objective import objective, whole_plates
from pyro_aeb.testing.orthogonal_design import OrthogonalDesign
from pyro_aeb.testing.reports import Outcome, Report
from pyro_aeb.testing.sequential import (
    SequentialPlan,
    SequentialResult,
    check_law,
    check_mean,
    check_same_law,
    sequential_test,
)
from pyro_aeb.testing.simulation import check_simulated_law
from pyro_aeb.testing.stationary import (
    check_stationary_law,
    sghmc_covariance,
    sgld_variance,
    stability_limit,
    target_variance,
)
from pyro_aeb.testing.transition import check_transition

__all__ = [
    "Outcome",
    "LinearScheme",
    "OrthogonalDesign",
    "Report",
    "SequentialPlan",
    "SequentialResult",
    "assert_agrees",
    "assert_tells_apart",
    "batch_means",
    "check_adaptation",
    "check_contract",
    "check_gradient",
    "check_law",
    "check_m_step",
    "check_mean",
    "check_model",
    "check_same_law",
    "check_simulated_law",
    "check_stationary_law",
    "check_transition",
    "check_unbiased_gradient",
    "linear_scheme",
    "minibatches",
    "objective",
    "replicates",
    "sequential_test",
    "sghmc_covariance",
    "sgld_variance",
    "stability_limit",
    "target_variance",
    "whole_plates",
]
