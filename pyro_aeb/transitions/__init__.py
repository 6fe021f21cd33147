# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Transitions of stochastic-gradient MCMC, one file each."""

from pyro_aeb.transitions.baoab import BAOAB, BAOABState
from pyro_aeb.transitions.base import (
    AnyTransition,
    Evaluated,
    HasStatistics,
    StepNumbers,
    Target,
    TargetTransition,
    Transition,
    statistics_of,
)
from pyro_aeb.transitions.contour import ContourSGLD, ContourSGLDState
from pyro_aeb.transitions.cyclical import CyclicalSGMCMC
from pyro_aeb.transitions.hmc import HMC, HMCState
from pyro_aeb.transitions.psgld import PSGLD, CorrectedPSGLDState, PSGLDState
from pyro_aeb.transitions.replica_exchange import ReplicaExchange
from pyro_aeb.transitions.sghmc import SGHMC, SGHMCState
from pyro_aeb.transitions.sgld import SGLD, SGLDState
from pyro_aeb.transitions.sgnht import SGNHT, SGNHTState
from pyro_aeb.transitions.svrg import SVRG
from pyro_aeb.transitions.tuned import TunedBAOAB, TunedState

__all__ = [
    "BAOAB",
    "HMC",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "SVRG",
    "AnyTransition",
    "BAOABState",
    "ContourSGLD",
    "ContourSGLDState",
    "CorrectedPSGLDState",
    "CyclicalSGMCMC",
    "Evaluated",
    "HMCState",
    "HasStatistics",
    "PSGLDState",
    "ReplicaExchange",
    "SGHMCState",
    "SGLDState",
    "SGNHTState",
    "StepNumbers",
    "Target",
    "TargetTransition",
    "Transition",
    "TunedBAOAB",
    "TunedState",
    "statistics_of",
]
