# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Tuning of a chain in warm-up: the settings of :class:`~pyro_aeb.transitions.TunedBAOAB` and the
steps per draw. After warm-up all of them are frozen.

- The scale of every weight is one over the root of its curvature, by Hutchinson's probes.
- The step size is at most half of one over the largest curvature that remains, by power iteration.
  With minibatches it is led by the kinetic temperature below that cap, but not below what the
  measured noise of the gradient alone asks for.
- The friction is the root of the step size: it forgets the momentum in one unit of time.
- A pilot of the frozen chain measures autocorrelation times, from which the steps per draw follow.
"""

from pyro_aeb.tuning.report import Tuning
from pyro_aeb.tuning.tuner import Tuner

__all__ = ["Tuner", "Tuning"]
