# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Priors of a scale sigma other than an InverseGamma of its square, as equation (6) needs them: by the
slope of their log density in log sigma,

.. math::

    \sigma\, \frac{d \log p}{d \sigma} =
        c - r \sigma - h \sigma^2 - \frac{2 \sigma^2}{g^2 + \sigma^2}.

================  =========================================
prior of sigma    its terms
================  =========================================
``HalfCauchy``    :math:`g` = its scale
``HalfNormal``    :math:`h` = 1 / its scale squared
``Exponential``   :math:`r` = its rate
``Gamma``         :math:`c = a - 1`, :math:`r` = its rate
================  =========================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.priors.components import Number


class ScaleTerms(NamedTuple):
    """
    The terms of the slope, one number each, or one for each sigma; None for a term that is absent.

    :param constant: c.
    :param linear: r.
    :param quadratic: h.
    :param cauchy: g squared, infinite where the term is absent.
    """

    constant: Number = 0.0
    linear: Number | None = None
    quadratic: Number | None = None
    cauchy: Number | None = None


SCALE_PRIORS: Mapping[type, Callable[[Any], ScaleTerms]] = {
    dist.HalfCauchy: lambda fn: ScaleTerms(cauchy=fn.scale.square()),
    dist.HalfNormal: lambda fn: ScaleTerms(quadratic=fn.scale.square().reciprocal()),
    dist.Exponential: lambda fn: ScaleTerms(linear=fn.rate),
    dist.Gamma: lambda fn: ScaleTerms(fn.concentration - 1.0, linear=fn.rate),
}
"""The terms of a prior, by its class."""


def scale_terms(fn: Any, shape: torch.Size) -> list[ScaleTerms]:
    """
    Return the terms of a prior of one of the :data:`SCALE_PRIORS` as plain numbers, for each number
    of a site of some shape.
    """
    terms = next(make(fn) for kind, make in SCALE_PRIORS.items() if isinstance(fn, kind))
    numbers = {
        name: value.expand(shape).flatten().tolist()
        for name, value in terms._asdict().items()
        if isinstance(value, Tensor)
    }
    return [
        terms._replace(**dict(zip(numbers, row, strict=True)))
        for row in zip(*numbers.values(), strict=True)
    ]
