# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A network's priors: what users give, checked and as plain numbers, and the distributions that a step
need not make anew.

Those hold nothing that was sampled, and there is one for each dtype and device. They are made
outside of inference mode, as no gradient goes through a tensor that was made in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.validation import positive

Kind = tuple[torch.dtype, torch.device]


@dataclass(frozen=True)
class Priors:
    """
    The priors of a network, as plain numbers.

    :param float v0: of SSGL.
    :param float v1: of SSGL.
    :param delta: a number that fixes the layers' deltas, or (a, b) of their Beta(a, b).
    :param sigma2: a number that fixes sigma squared, or the (concentration, rate) of its
        InverseGamma.
    :param float dense_scale: standard deviation of the Normal.
    :param bool by_unit: whether a unit's weights share a gamma.
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
    """
    The number, or the (a, b) of the Beta, checked.

    :raises TypeError: if it is neither.
    :raises ValueError: if the number is outside [0, 1], or the prior not of one number.
    """
    if isinstance(delta, dist.Beta):
        return _one("delta", delta.concentration1), _one("delta", delta.concentration0)
    if not isinstance(delta, Real):
        raise TypeError(
            f"delta is {delta!r}, expected a pyro.distributions.Beta, which all layers share as "
            "their prior, or a number in [0, 1], which fixes their deltas"
        )
    if not 0.0 <= float(delta) <= 1.0:
        raise ValueError(
            f"delta is {delta!r}, expected a number in [0, 1]: it is the probability of the "
            "Gaussian component; of a logit, pass its sigmoid"
        )
    return float(delta)


def sigma2_prior(sigma2: Any) -> float | tuple[float, float]:
    """
    The number, or the (concentration, rate) of the InverseGamma, checked.

    :raises TypeError: if it is neither.
    :raises ValueError: if the number is not positive, or the prior not of one number.
    """
    if isinstance(sigma2, dist.InverseGamma):
        return _one("sigma2", sigma2.concentration), _one("sigma2", sigma2.rate)
    if not isinstance(sigma2, Real):
        raise TypeError(
            f"sigma2 is {sigma2!r}, expected a pyro.distributions.InverseGamma or a number > 0, "
            "which fixes sigma squared"
        )
    return positive("sigma2", sigma2)


def _one(name: str, parameter: Tensor) -> float:
    if parameter.numel() != 1:
        raise ValueError(
            f"{name} has a prior of shape {tuple(parameter.shape)}, expected one of a single "
            "number; every sparse layer has the same prior"
        )
    return float(parameter)


@lru_cache(maxsize=1024)
def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor."""
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


@lru_cache(maxsize=1024)
def normal(scale: float, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Independent Normal(0, scale) of a shape."""
    loc, scales = (number(value, dtype, device).expand(shape) for value in (0.0, scale))
    return dist.Normal(loc, scales, validate_args=False).to_event(len(shape))


@lru_cache(maxsize=1024)
def beta(a: float, b: float, dtype: torch.dtype, device: torch.device) -> Any:
    """Beta(a, b) of one number."""
    a_, b_ = (number(value, dtype, device) for value in (a, b))
    with torch.inference_mode(False):
        return dist.Beta(a_, b_, validate_args=True)


@lru_cache(maxsize=1024)
def inverse_gamma(shape: float, rate: float, dtype: torch.dtype, device: torch.device) -> Any:
    """InverseGamma(shape, rate) of one number."""
    shape_, rate_ = (number(value, dtype, device) for value in (shape, rate))
    with torch.inference_mode(False):
        return dist.InverseGamma(shape_, rate_, validate_args=True)
