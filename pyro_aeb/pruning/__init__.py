# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Pruning: which weights are set to zero, and when.

A user gives the kernel a :class:`~pyro_aeb.pruning.base.Pruning`, a frozen dataclass of options
that scores weights. For a run it becomes a ``Pruner``, which knows
the model's structure, sets the target of equation (9), shares it out among the layers by (10) and
changes the position in place; ``pyro_aeb.pruning.selection`` counts and chooses.
"""

from pyro_aeb.pruning.base import (
    MagnitudePruning,
    ProbabilityPruning,
    Pruning,
    UnitPruning,
)
from pyro_aeb.pruning.pruner import Pruner

__all__ = ["MagnitudePruning", "ProbabilityPruning", "Pruner", "Pruning", "UnitPruning"]
