# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The prior of a width of the spikes that is learned."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.validation import count, positive


def spike_width(name: str, weights: int, concentration: float = 1.0, share: float = 0.05) -> Tensor:
    r"""
    Sample the width v0 of the Laplace spikes of some weights, and return it::

        v0 = aeb.priors.spike_width("v0", x.shape[1])
        prior = aeb.SSGL(v0, 1.0, delta, sigma2.sqrt())

    The site is ``pyro.sample(name, dist.InverseGamma(c, d))``, that is
    :math:`1 / v_0 \sim \mathrm{Gamma}(c, d)`, with :math:`d = \log 2 \sqrt{s / p}` for p weights.
    With c = 1 the median of v0 is :math:`\sqrt{s / p}`: s is then about half of the variance that
    p spikes explain, in units of that of the noise, of features of unit variance. The first value
    is that median.

    :param str name: the site.
    :param int weights: p.
    :param float concentration: c; a smaller one is a weaker prior.
    :param float share: s.
    """
    weights = count("spike_width: weights", weights)
    concentration = positive("spike_width: concentration", concentration)
    median = math.sqrt(positive("spike_width: share", share) / weights)
    prior = dist.InverseGamma(concentration, math.log(2.0) * median)
    infer: Any = {"init_value": torch.tensor(median)}
    return pyro.sample(name, prior, infer=infer)
