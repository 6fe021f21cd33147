# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of many chains: in sequence, vectorised, in processes and over several machines."""

from pyro_aeb.mcmc.api import MCMC

__all__ = ["MCMC"]
