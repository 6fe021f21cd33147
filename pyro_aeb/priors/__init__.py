# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Priors of sparse weights.

A spike-and-slab prior is one class; see :mod:`pyro_aeb.priors.base`. The kernel computes equations
(2) and (4) to (6) from its two components.
"""

from pyro_aeb.priors.base import SpikeAndSlab
from pyro_aeb.priors.components import Component, Gaussian, Laplace, Student
from pyro_aeb.priors.group import Group
from pyro_aeb.priors.horseshoe import horseshoe, horseshoe_latents
from pyro_aeb.priors.lasso import SpikeAndSlabLasso
from pyro_aeb.priors.normal import SpikeAndSlabNormal
from pyro_aeb.priors.sparse_prior import SparsePrior
from pyro_aeb.priors.spike_width import spike_width
from pyro_aeb.priors.ssgl import SSGL
from pyro_aeb.priors.student import SpikeAndSlabStudent
from pyro_aeb.priors.two_scales import TwoScales

__all__ = [
    "SSGL",
    "Component",
    "Gaussian",
    "Group",
    "Laplace",
    "SparsePrior",
    "SpikeAndSlab",
    "SpikeAndSlabLasso",
    "SpikeAndSlabNormal",
    "SpikeAndSlabStudent",
    "Student",
    "TwoScales",
    "horseshoe",
    "horseshoe_latents",
    "spike_width",
]
