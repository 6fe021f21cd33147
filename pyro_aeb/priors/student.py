# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A Laplace spike and a slab with heavy tails."""

from __future__ import annotations

from pyro.distributions import constraints

from pyro_aeb.priors.base import SpikeAndSlab, parameter
from pyro_aeb.priors.components import Laplace, Number, Student


class SpikeAndSlabStudent(SpikeAndSlab):
    r"""
    A mixture of a Laplace spike and a Student's t slab, which shrinks large weights less::

        gamma         ~ Bernoulli(delta)
        value | gamma ~ Laplace(0, scale = sigma * v0)                  if gamma = 0
                        StudentT(df, 0, scale = sigma * sqrt(v1))       if gamma = 1

    ``df = 1`` is a Cauchy slab; a large ``df`` approaches :class:`~pyro_aeb.priors.ssgl.SSGL`. The
    slab's penalty :math:`(n+1) / (n v_1 + u^2)` falls as the weight grows. Sigma's update (6)
    evaluates it at the previous sigma, the EM step of a scale mixture of Gaussians, whose fixed
    point is the maximiser. On slabs with heavy tails see Johnstone, Silverman (2004), "Needles and
    straw in haystacks", Annals of Statistics 32.

    :param v0: scale of the spike, in units of ``sigma``; positive.
    :param v1: squared scale of the slab, in units of ``sigma ** 2``; positive.
    :param df: the slab's degrees of freedom n; positive.
    :param delta: probability of the slab, in [0, 1].
    :param sigma: scale that both components share; positive. All parameters are numbers or floating
        point tensors, which broadcast to the ``batch_shape``.
    """

    arg_constraints = {
        "v0": constraints.positive,
        "v1": constraints.positive,
        "df": constraints.positive,
        **SpikeAndSlab.arg_constraints,
    }
    advice = {
        "v0": "the spike has scale sigma * v0, a small number such as 0.1",
        "v1": "the slab has scale sigma * sqrt(v1); v1 = 1 to 10 are usual values",
        "df": "df are the degrees of freedom of the slab, such as 3; 1 is a Cauchy",
    }

    v0 = parameter("v0", "Scale of the spike in units of ``sigma``, shape ``batch_shape``.")
    v1 = parameter("v1", "Squared scale of the slab, units of ``sigma ** 2``.")
    df = parameter("df", "Degrees of freedom of the slab, shape ``batch_shape``.")

    def __init__(
        self,
        v0: Number,
        v1: Number,
        df: Number,
        delta: Number,
        sigma: Number = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__({"v0": v0, "v1": v1, "df": df}, delta, sigma, validate_args)

    @staticmethod
    def components(v0: Number, v1: Number, df: Number) -> tuple[Laplace, Student]:
        return Laplace(v0), Student(v1, df)
