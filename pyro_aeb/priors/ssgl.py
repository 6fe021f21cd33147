# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The spike-and-slab Gaussian-Laplace prior of the paper."""

from __future__ import annotations

import pyro.distributions as dist

from pyro_aeb.priors.components import Gaussian, Laplace, Number
from pyro_aeb.priors.two_scales import TwoScales


class SSGL(TwoScales):
    """
    The spike-and-slab Gaussian-Laplace distribution, equation (1), with ``gamma`` summed out::

        gamma         ~ Bernoulli(delta)
        value | gamma ~ Laplace(0, scale = sigma * v0)           if gamma = 0
                        Normal(0, variance = sigma**2 * v1)      if gamma = 1

    Which component is the narrow *spike* depends on ``v0`` and ``v1``. See
    :class:`~pyro_aeb.priors.base.SpikeAndSlab` for its methods. Deng, Zhang, Liang, Lin (2019), "An
    adaptive empirical Bayesian method for sparse deep learning", NeurIPS, arXiv 1910.10791.

    :param v0: scale of the Laplace component, in units of ``sigma``; positive. It may be
        learned, see :func:`~pyro_aeb.priors.spike_width`.
    :param v1: variance of the Gaussian component, in units of ``sigma ** 2``; positive.
    :param delta: probability of the Gaussian component, in [0, 1].
    :param sigma: scale that both components share; positive. All parameters are numbers or floating
        point tensors, which broadcast to the ``batch_shape``.
    """

    advice = {
        "v0": "the Laplace component has scale sigma * v0; v0 = 0.1 is a usual value in regression",
        "v1": "the Gaussian component has variance sigma**2 * v1; v1 = 10 is a usual value in "
        "regression",
    }

    @staticmethod
    def components(v0: Number, v1: Number) -> tuple[Laplace, Gaussian]:
        return Laplace(v0), Gaussian(v1)

    @property
    def laplace(self) -> dist.Laplace:
        """The component of ``gamma = 0``."""
        return self.densities[0]

    @property
    def gaussian(self) -> dist.Normal:
        """The component of ``gamma = 1``."""
        return self.densities[1]
