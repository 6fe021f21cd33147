# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Stochastic-gradient MCMC transitions, one file each."""

from pyro_aeb.transitions.base import (
    AnyTransition,
    Evaluated,
    HasStatistics,
    StepNumbers,
    Target,
    TargetTransition,
    Transition,
)
from pyro_aeb.transitions.sghmc import SGHMC, SGHMCState
from pyro_aeb.transitions.sgld import SGLD, SGLDState

__all__ = [
    "SGHMC",
    "SGLD",
    "AnyTransition",
    "Evaluated",
    "HasStatistics",
    "SGHMCState",
    "SGLDState",
    "StepNumbers",
    "Target",
    "TargetTransition",
    "Transition",
]
