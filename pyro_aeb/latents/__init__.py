# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Updates of latent sites that are learned rather than sampled, given by site::

    adaptation = aeb.StochasticApproximation(
        aeb.Polynomial(10.0, 1000.0, 0.7),
        latents={"precision": aeb.latents.ClosedForm(), "rate": my_update},
    )

A custom update is one class or one function; see :mod:`pyro_aeb.latents.contract`.
"""

from pyro_aeb.latents.closed_form import ClosedForm
from pyro_aeb.latents.contract import AveragedStatistics, LatentUpdate, Seen
from pyro_aeb.latents.gradient_step import GradientStep
from pyro_aeb.latents.newton_step import NewtonStep

__all__ = ["ClosedForm", "GradientStep", "NewtonStep", "LatentUpdate", "AveragedStatistics", "Seen"]
