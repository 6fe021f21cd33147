# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Spike-and-slab priors for several tests, with their components by Pyro's distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist

from pyro_aeb import priors


class GaussianLaplace(priors.TwoScales):
    """A user's own prior, as on the page of priors."""

    advice = {"v0": "v0 is the spike's variance", "v1": "v1 is the slab's scale"}

    @staticmethod
    def components(v0, v1):
        return priors.Gaussian(v0), priors.Laplace(v1)


@dataclass(frozen=True)
class Family:
    """
    A family of spike-and-slab priors.

    :param make: class of the prior.
    :param numbers: parameters of its components.
    :param spike: function of sigma that returns the component of gamma = 0.
    :param slab: function of sigma that returns the component of gamma = 1.
    """

    make: Callable[..., Any]
    numbers: tuple[float, ...]
    spike: Callable[[Any], Any]
    slab: Callable[[Any], Any]

    def prior(self, delta: Any, sigma: Any, **options: Any) -> Any:
        return self.make(*self.numbers, delta, sigma, **options)


def laplace(v: float) -> Callable[[Any], Any]:
    return lambda sigma: dist.Laplace(0.0, sigma * v)


def normal(v: float) -> Callable[[Any], Any]:
    return lambda sigma: dist.Normal(0.0, sigma * math.sqrt(v))


def student(v: float, df: float) -> Callable[[Any], Any]:
    return lambda sigma: dist.StudentT(df, 0.0, sigma * math.sqrt(v))


FAMILIES = {
    "SSGL": Family(priors.SSGL, (0.1, 10.0), laplace(0.1), normal(10.0)),
    "SSGL, Gaussian spike": Family(priors.SSGL, (1.0, 0.01), laplace(1.0), normal(0.01)),
    "normal": Family(priors.SpikeAndSlabNormal, (0.02, 5.0), normal(0.02), normal(5.0)),
    "lasso": Family(priors.SpikeAndSlabLasso, (0.1, 3.0), laplace(0.1), laplace(3.0)),
    "Student": Family(priors.SpikeAndSlabStudent, (0.1, 2.0, 5.0), laplace(0.1), student(2.0, 5.0)),
    "one's own": Family(GaussianLaplace, (0.02, 3.0), normal(0.02), laplace(3.0)),
    "Cauchy": Family(priors.SpikeAndSlabStudent, (0.2, 1.0, 1.0), laplace(0.2), student(1.0, 1.0)),
}
