# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A mixture of a narrow and a wide Gaussian."""

from __future__ import annotations

from pyro_aeb.priors.components import Gaussian, Number
from pyro_aeb.priors.two_scales import TwoScales


class SpikeAndSlabNormal(TwoScales):
    """
    A mixture of two Gaussians, the prior of stochastic search variable selection and of EMVS::

        gamma         ~ Bernoulli(delta)
        value | gamma ~ Normal(0, variance = sigma**2 * v0)      if gamma = 0
                        Normal(0, variance = sigma**2 * v1)      if gamma = 1

    George, McCulloch (1993), "Variable selection via Gibbs sampling", JASA 88; Rockova, George
    (2014), "EMVS: the EM approach to Bayesian variable selection", JASA 109.

    :param v0: variance of the spike, in units of ``sigma ** 2``; positive.
    :param v1: variance of the slab, in units of ``sigma ** 2``; positive.
    :param delta: probability of the slab, in [0, 1].
    :param sigma: scale that both components share; positive. All parameters are numbers or floating
        point tensors, which broadcast to the ``batch_shape``.
    """

    advice = {
        "v0": "the spike has variance sigma**2 * v0, a small number such as 0.01",
        "v1": "the slab has variance sigma**2 * v1, such as 10",
    }

    @staticmethod
    def components(v0: Number, v1: Number) -> tuple[Gaussian, Gaussian]:
        return Gaussian(v0), Gaussian(v1)
