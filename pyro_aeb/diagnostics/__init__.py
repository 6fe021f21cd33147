# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Diagnostics of runs. :func:`check` reads the record of a run and says what to do; the other
functions return the figures, or experiment on a chain whose latents are frozen. Of the results,
:func:`inclusion`, :func:`select`, :func:`models` and :func:`intervals` say which weights are in::

    aeb.check(mcmc)
    aeb.inclusion(mcmc)
    aeb.diagnostics.step_halving(mcmc)
    aeb.diagnostics.plot_latents(mcmc)
"""

from pyro_aeb.diagnostics.deltas import collapse
from pyro_aeb.diagnostics.findings import Finding, Verdict
from pyro_aeb.diagnostics.flips import pruning_flips
from pyro_aeb.diagnostics.gradient_noise import NoiseRatio, noise_ratio
from pyro_aeb.diagnostics.halving import StepHalving, step_halving
from pyro_aeb.diagnostics.inclusion_probabilities import Inclusion, SiteInclusion, inclusion
from pyro_aeb.diagnostics.kinetics import Temperature, temperature
from pyro_aeb.diagnostics.model_selection import CredibleSet, Selection, select
from pyro_aeb.diagnostics.plots import plot_inclusion, plot_latents, plot_sparsity
from pyro_aeb.diagnostics.settling import Residual, sa_residual
from pyro_aeb.diagnostics.split_intervals import Intervals, SiteIntervals, intervals
from pyro_aeb.diagnostics.stein import KSD, ksd
from pyro_aeb.diagnostics.verdict import check
from pyro_aeb.diagnostics.visited_models import Models, VisitedModel, models

__all__ = [
    "KSD",
    "CredibleSet",
    "Finding",
    "Inclusion",
    "Intervals",
    "Models",
    "NoiseRatio",
    "Residual",
    "Selection",
    "SiteInclusion",
    "SiteIntervals",
    "StepHalving",
    "Temperature",
    "Verdict",
    "VisitedModel",
    "check",
    "collapse",
    "inclusion",
    "intervals",
    "ksd",
    "models",
    "noise_ratio",
    "plot_inclusion",
    "plot_latents",
    "plot_sparsity",
    "pruning_flips",
    "sa_residual",
    "select",
    "step_halving",
    "temperature",
]
