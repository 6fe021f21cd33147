# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The adaptations, by their options."""

from __future__ import annotations

from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.adaptation.gibbs_sweep import GibbsAdaptation
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.sweep import Adaptation, AveragedAdaptation
from pyro_aeb.model.structure import Structure

AnyAdaptation = StochasticApproximation | Gibbs
"""The options of an adaptation."""


def make_adaptation(structure: Structure, options: AnyAdaptation | None) -> Adaptation:
    """
    Make the adaptation of a model.

    :param options: None where nothing is learned.
    """
    if isinstance(options, Gibbs):
        return GibbsAdaptation(structure, options)
    return AveragedAdaptation(structure, options)
