# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All transitions of the package, with the order of their bias on a Gaussian."""

from __future__ import annotations

import inspect

import pyro_aeb.transitions
from pyro_aeb.schedules import Cyclical, Polynomial
from pyro_aeb.transitions import (
    BAOAB,
    HMC,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    SVRG,
    ContourSGLD,
    CyclicalSGMCMC,
    ReplicaExchange,
    TunedBAOAB,
)

CYCLES = Cyclical(1.0, period=20)

# Linear on Gaussians, with the order in which the covariance tends to the target's as steps shrink:
# first for Euler steps of Langevin dynamics; BAOAB is exact (Leimkuhler, Matthews 2013, section 3).
LINEAR = {
    SGLD(0.05): "order 1.0",
    SGLD(Polynomial(1e-3, power=1 / 3)): "order 1.0",
    SGHMC(0.05): "order 1.0",
    SGHMC(0.05, friction=0.9): "order 1.0",
    SGHMC(0.05, friction=1.0): "order 1.0",
    BAOAB(0.05): "exact at any step size",
    BAOAB(0.05, friction=2.0): "exact at any step size",
    BAOAB(0.05, friction=float("inf")): "exact at any step size",
    # Below the threshold of the step size these are their inner transitions.
    CyclicalSGMCMC(SGLD(CYCLES)): "order 1.0",
    CyclicalSGMCMC(SGHMC(CYCLES), exploration=0.7): "order 1.0",
    CyclicalSGMCMC(BAOAB(CYCLES), exploration=0.0): "exact at any step size",
    # An anchor at every step is the gradient of all data.
    SVRG(SGLD(0.05), every=1): "order 1.0",
    SVRG(BAOAB(0.05), every=1): "exact at any step size",
}

# Not linear, or not the same at every step: checked by simulation.
SIMULATED = [
    SGNHT(0.05),
    PSGLD(0.05, adapt_until=100),
    PSGLD(0.05, correction=True),
    SVRG(SGLD(0.05), every=100),
    ReplicaExchange(SGLD(0.05), temperature_ratio=1.5, swap_every=1),
    ReplicaExchange(SGHMC(0.05), 2.0, 1.5, swap_every=3, energies="batch"),
    ContourSGLD(0.05, energies=(0.0, 60.0), bins=30, weight=0.02),
    HMC(0.05, leapfrogs=5),
    # With s = 1 its steps are BAOAB's (test_tuned.py); its settings are state, and not linear.
    TunedBAOAB(),
]

ALL_TRANSITIONS = [*LINEAR, *SIMULATED]


def transition_classes() -> set[type]:
    """Return the transitions that the package exports."""
    exported = [getattr(pyro_aeb.transitions, name) for name in pyro_aeb.transitions.__all__]
    transitions = {c for c in exported if inspect.isclass(c) and callable(getattr(c, "init", None))}
    return transitions - {pyro_aeb.transitions.Transition, pyro_aeb.transitions.TargetTransition}
