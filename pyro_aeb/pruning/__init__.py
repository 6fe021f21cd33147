# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Pruning: set weights to zero during a run.

A :class:`~pyro_aeb.pruning.base.Pruning` holds the user's options and scores weights. A
``Pruner`` applies it to one model: it follows the schedule of
equation (9), shares the pruned weights out among the layers by (10), and changes the position in
place. ``pyro_aeb.pruning.selection`` counts and selects.
"""

from pyro_aeb.pruning.base import MagnitudePruning, ProbabilityPruning, Pruning, UnitPruning
from pyro_aeb.pruning.pruner import Pruner

__all__ = ["MagnitudePruning", "ProbabilityPruning", "Pruner", "Pruning", "UnitPruning"]
