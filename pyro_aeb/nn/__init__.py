# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sparse Bayesian networks: made from torch modules, predicted with, and exported to modules."""

from pyro_aeb.nn import scores
from pyro_aeb.nn.bayesian_module import BayesianModule, bayesianize
from pyro_aeb.nn.export import LayerCount, ParameterCounts, masks, parameter_counts, sparse_module
from pyro_aeb.nn.predictive import PosteriorPredictive
from pyro_aeb.nn.removal import remove_units

__all__ = [
    "BayesianModule",
    "LayerCount",
    "ParameterCounts",
    "PosteriorPredictive",
    "bayesianize",
    "masks",
    "parameter_counts",
    "remove_units",
    "scores",
    "sparse_module",
]
