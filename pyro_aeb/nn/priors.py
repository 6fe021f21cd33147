# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A network's priors, as plain numbers, and the distributions that do not change from step to step.

These depend on no sampled value, so there is one instance for each dtype and device. They are
created outside of inference mode: a tensor that was created in it takes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.validation import number

Kind = tuple[torch.dtype, torch.device]


@dataclass(frozen=True)
class Priors:
    """
    The priors of a network, as plain numbers.

    :param float v0: of SSGL.
    :param float v1: of SSGL.
    :param delta: a number that fixes the layers' deltas, or (a, b) of their Beta(a, b).
    :param sigma2: a number that fixes sigma squared, or (concentration, rate) of its InverseGamma.
    :param float dense_scale: standard deviation of the Normal.
    :param bool by_unit: whether the weights of a unit share a gamma.
    """

    v0: float
    v1: float
    delta: float | tuple[float, float]
    sigma2: float | tuple[float, float]
    dense_scale: float
    by_unit: bool = False

    def __str__(self) -> str:
        delta, sigma2 = (
            f" ~ {name}({p[0]:g}, {p[1]:g})" if isinstance(p, tuple) else f"={p:g}"
            for name, p in (("Beta", self.delta), ("InverseGamma", self.sigma2))
        )
        return (
            f"SSGL(v0={self.v0:g}, v1={self.v1:g}, delta{delta}, sigma2{sigma2})"
            f"{' by unit' if self.by_unit else ''}, "
            f"Normal(0, {self.dense_scale:g})"
        )


def delta_prior(delta: Any) -> float | tuple[float, float]:
    """Return the fixed delta, or the (a, b) of its Beta prior; see :func:`_read_prior`."""
    advice = "it is the probability of the Gaussian component; of a logit, pass its sigmoid"
    parameters = ("concentration1", "concentration0")
    return _read_prior("delta", delta, dist.Beta, parameters, "[0, 1]", advice)


def sigma2_prior(sigma2: Any) -> float | tuple[float, float]:
    """Return the fixed sigma squared, or the (concentration, rate) of its InverseGamma prior."""
    return _read_prior("sigma2", sigma2, dist.InverseGamma, ("concentration", "rate"), "(0, inf)")


def _read_prior(
    name: str, value: Any, family: Any, parameters: tuple[str, str], within: str, advice: str = ""
) -> float | tuple[float, float]:
    """
    Return a number, or the parameters of a prior.

    :raises TypeError: if the value is neither.
    :raises ValueError: if the number is out of range, or the prior not of one number.
    """
    if isinstance(value, family):
        if value.batch_shape.numel() != 1:
            raise ValueError(
                f"{name} has a prior of shape {tuple(value.batch_shape)}, expected one of a single "
                "number; every sparse layer has the same prior"
            )
        first, second = (float(getattr(value, parameter)) for parameter in parameters)
        return first, second
    if not isinstance(value, Real):
        raise TypeError(
            f"{name} is {value!r}, expected a pyro.distributions.{family.__name__}, the prior in "
            f"every sparse layer, or a number in {within}, which fixes {name}"
        )
    return number(name, value, within, advice)


@lru_cache(maxsize=1024)
def scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number as a tensor of shape ()."""
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


@lru_cache(maxsize=1024)
def normal(scale: float, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Return independent Normal(0, scale) distributions of a shape."""
    loc, scales = (scalar(value, dtype, device).expand(shape) for value in (0.0, scale))
    return dist.Normal(loc, scales, validate_args=False).to_event(len(shape))


@lru_cache(maxsize=1024)
def hyperprior(family: Any, a: float, b: float, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the Beta(a, b) or InverseGamma(a, b) distribution of one number."""
    parameters = [scalar(value, dtype, device) for value in (a, b)]
    with torch.inference_mode(False):
        return family(*parameters, validate_args=True)
