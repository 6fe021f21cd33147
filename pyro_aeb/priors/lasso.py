# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The spike-and-slab lasso."""

from __future__ import annotations

from pyro_aeb.priors.components import Laplace, Number
from pyro_aeb.priors.two_scales import TwoScales


class SpikeAndSlabLasso(TwoScales):
    """
    The spike-and-slab lasso, a mixture of two Laplace distributions::

        gamma         ~ Bernoulli(delta)
        value | gamma ~ Laplace(0, scale = sigma * v0)           if gamma = 0
                        Laplace(0, scale = sigma * v1)           if gamma = 1

    Rockova, George (2018), "The spike-and-slab lasso", JASA 113. Their lambda0 and lambda1 are
    ``1 / v0`` and ``1 / v1``.

    :param v0: scale of the spike, in units of ``sigma``; positive.
    :param v1: scale of the slab, in units of ``sigma``; positive.
    :param delta: probability of the slab, in [0, 1].
    :param sigma: scale that both components share; positive. All parameters are numbers or floating
        point tensors, which broadcast to the ``batch_shape``.
    """

    advice = {
        "v0": "the spike has scale sigma * v0, a small number such as 0.1",
        "v1": "the slab has scale sigma * v1, such as 3",
    }

    @staticmethod
    def components(v0: Number, v1: Number) -> tuple[Laplace, Laplace]:
        return Laplace(v0), Laplace(v1)
