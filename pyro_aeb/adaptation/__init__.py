# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How latents are learned: equations (2) and (4) to (8), and the options that choose them."""

from pyro_aeb.adaptation.equations import (
    add_prior_gradient,
    beta_counts,
    beta_mode,
    scale_mode,
    scale_update,
    stochastic_approximation,
)
from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.adaptation.options import StochasticApproximation

__all__ = [
    "Gibbs",
    "StochasticApproximation",
    "add_prior_gradient",
    "beta_counts",
    "beta_mode",
    "scale_mode",
    "scale_update",
    "stochastic_approximation",
]
