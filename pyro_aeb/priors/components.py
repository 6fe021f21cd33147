# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Components of spike-and-slab distributions: densities of :math:`x = \beta / \sigma`, symmetric
about 0; and equations (4) and (5), for any two components.

With :math:`u = |x|`, the energy :math:`E(u) = \log p(0) - \log p(u)` of a component has the slope
:math:`E'(u) = l + k(u)\, u`, where l is the strength of its :math:`L_1` penalty and k that of its
:math:`L_2` penalty:

=========  =============================================  ===========  ===========================
component  E(u)                                           l            k(u)
=========  =============================================  ===========  ===========================
Laplace    :math:`u / v`                                  :math:`1/v`  0
Gaussian   :math:`u^2 / 2v`                               0            :math:`1/v`
Student    :math:`\tfrac{n+1}{2} \log(1 + u^2 / nv)`      0            :math:`(n+1) / (nv + u^2)`
=========  =============================================  ===========  ===========================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

Number = float | Tensor


class Component(ABC):
    """
    A density in units of sigma. Its parameters are numbers, or tensors that broadcast with the
    values.

    :param v: scale in units of sigma (Laplace), or variance in units of sigma squared (all others).
    """

    bends: ClassVar[bool] = False
    """Whether k depends on u, so that the energy is no polynomial of degree 2."""

    def __init__(self, v: Number) -> None:
        self.v = v
        self.linear: Number = 0.0
        """The number l of the table."""

    @property
    @abstractmethod
    def log_peak(self) -> Number:
        """The log density at 0."""

    @property
    @abstractmethod
    def variance(self) -> Number:
        """The variance, in units of sigma squared."""

    @abstractmethod
    def energy(self, u: Tensor) -> Tensor:
        """Return the energy E(u)."""

    def quadratic(self, u: Tensor | None = None) -> Number:
        """
        Return k(u).

        :param u: needed if the component bends.
        """
        return 0.0

    @property
    def strength(self) -> Number:
        """The strength of the penalty at u = 0: l if it is not 0, else k(0)."""
        return 1.0 / self.v

    @abstractmethod
    def sample(self, like: Tensor) -> Tensor:
        """Return random numbers of the shape, dtype and device of a tensor."""

    @abstractmethod
    def distribution(self, sigma: Tensor) -> Any:
        """Return the component, scaled by sigma, as a distribution of Pyro."""

    def log_density(self, u: Tensor) -> Tensor:
        """Return the log density."""
        return self.log_peak - self.energy(u)


class Quantiles(Component):
    """A component whose distribution function has a closed form."""

    power: ClassVar[float] = 1.0
    """The power of v that is the scale."""

    @property
    def scale(self) -> Number:
        """The scale, in units of sigma."""
        return self.v**self.power

    @abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function, to full relative precision in the lower tail."""

    @abstractmethod
    def icdf(self, q: Tensor) -> Tensor:
        """Return the quantile of a probability of at most 1/2."""

    @abstractmethod
    def mills(self, u: Tensor) -> Number:
        """Return Mills' ratio: the upper tail beyond u divided by the density at u."""


class Laplace(Quantiles):
    """Laplace with scale v, in units of sigma."""

    def __init__(self, v: Number) -> None:
        super().__init__(v)
        self.linear = 1.0 / v

    @property
    def log_peak(self) -> Number:
        return -log(2 * self.v)

    @property
    def variance(self) -> Number:
        return 2 * self.v**2

    def energy(self, u: Tensor) -> Tensor:
        return u * self.linear

    def sample(self, like: Tensor) -> Tensor:
        first, second = torch.empty_like(like), torch.empty_like(like)
        return self.v * (first.exponential_() - second.exponential_())

    def distribution(self, sigma: Tensor) -> Any:
        return dist.Laplace(torch.zeros_like(sigma), sigma * self.v, validate_args=False)

    def cdf(self, x: Tensor) -> Tensor:
        # Not abs, whose derivative at 0 is 0.
        tail = 0.5 * (torch.where(x < 0, x, -x) / self.v).exp()
        return torch.where(x < 0, tail, 1 - tail)

    def icdf(self, q: Tensor) -> Tensor:
        return self.v * (2 * q).log()

    def mills(self, u: Tensor) -> Number:
        return self.v


class Gaussian(Quantiles):
    """Normal with variance v, in units of sigma squared."""

    power = 0.5

    def __init__(self, v: Number) -> None:
        super().__init__(v)
        self._precision = 1.0 / v

    @property
    def log_peak(self) -> Number:
        return -0.5 * log(2 * math.pi * self.v)

    @property
    def variance(self) -> Number:
        return self.v

    def energy(self, u: Tensor) -> Tensor:
        return u.square() * (0.5 * self._precision)

    def quadratic(self, u: Tensor | None = None) -> Number:
        return self._precision

    def sample(self, like: Tensor) -> Tensor:
        return self.scale * torch.empty_like(like).normal_()

    def distribution(self, sigma: Tensor) -> Any:
        return dist.Normal(torch.zeros_like(sigma), sigma * self.scale, validate_args=False)

    def cdf(self, x: Tensor) -> Tensor:
        # Not torch.special.ndtr: its lower tail is 0.
        return 0.5 * torch.erfc(x / -math.sqrt(2) / self.scale)

    def icdf(self, q: Tensor) -> Tensor:
        return self.scale * torch.special.ndtri(q)

    def mills(self, u: Tensor) -> Number:
        scaled = u / (math.sqrt(2) * self.scale)
        return self.scale * math.sqrt(math.pi / 2) * torch.special.erfcx(scaled)


class Student(Component):
    """
    Student's t of squared scale v, in units of sigma squared.

    :param v: the squared scale; the variance is v df / (df - 2), or infinite.
    :param df: degrees of freedom.
    """

    bends = True

    def __init__(self, v: Number, df: Number) -> None:
        super().__init__(v)
        self.df = df

    @property
    def log_peak(self) -> Number:
        half = 0.5 * self.df
        return _lgamma(half + 0.5) - _lgamma(half) - 0.5 * log(math.pi * self.df * self.v)

    @property
    def variance(self) -> Number:
        if isinstance(self.df, Tensor):
            return torch.where(self.df > 2, self.v * self.df / (self.df - 2), math.inf)
        return self.v * self.df / (self.df - 2) if self.df > 2 else math.inf * self.v

    def energy(self, u: Tensor) -> Tensor:
        return 0.5 * (self.df + 1) * (u.square() / (self.df * self.v)).log1p()

    def quadratic(self, u: Tensor | None = None) -> Number:
        assert u is not None
        return (self.df + 1) / (self.df * self.v + u.square())

    @property
    def strength(self) -> Number:
        return (self.df + 1) / (self.df * self.v)

    def sample(self, like: Tensor) -> Tensor:
        df = (torch.zeros_like(like) + self.df).expand_as(like)
        return self.v**0.5 * dist.StudentT(df, validate_args=False).sample()

    def distribution(self, sigma: Tensor) -> Any:
        df = torch.zeros_like(sigma) + self.df
        scale = sigma * self.v**0.5
        return dist.StudentT(df, torch.zeros_like(sigma), scale, validate_args=False)


def inclusion_logit(u: Tensor, prior: Tensor, spike: Component, slab: Component) -> Tensor:
    r"""
    Return the logit of equation (4), the probability that a weight belongs to the slab::

        logit P(gamma = 1 | u) = logit(delta) + log p1(u) - log p0(u)

    with the densities p0 of the spike and p1 of the slab. For SSGL that is ``logit(delta) +
    log(2 v0) - log(2 pi v1) / 2 + u / v0 - u**2 / (2 v1)``.

    :param Tensor u: absolute weights, in units of sigma.
    :param Tensor prior: logit(delta), broadcasts with ``u``.
    :param Component spike: the component of gamma = 0.
    :param Component slab: the component of gamma = 1.
    """
    constant = prior + (slab.log_peak - spike.log_peak)
    if spike.bends or slab.bends:
        return constant + (spike.energy(u) - slab.energy(u))
    slope, curve = spike.linear - slab.linear, spike.quadratic() - slab.quadratic()
    return _polynomial(constant, u, slope, 0.5 * curve)


def _polynomial(constant: Tensor, u: Tensor, slope: Number, curve: Number) -> Tensor:
    """Return constant + slope u + curve u^2, by one or two passes where these are numbers."""
    if isinstance(curve, float) and curve == 0.0:
        if isinstance(slope, float):
            return torch.add(constant, u, alpha=slope)
        return torch.addcmul(constant, u, slope)
    if isinstance(slope, float) and isinstance(curve, float):
        if slope == 0.0:
            return torch.addcmul(constant, u, u, value=curve)
        return torch.addcmul(constant, u, torch.rsub(u, slope, alpha=-curve))
    return torch.addcmul(constant, u, slope + u * curve)


def penalties(
    share: Tensor, excess: Number, spike: Component, slab: Component, u: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    r"""
    Return the expected strengths of the penalties, equation (5).

    They are :math:`L = r_0 l_0 + r_1 l_1` of :math:`|\beta| / \sigma` and
    :math:`K = r_0 k_0(u) + r_1 k_1(u)` of :math:`\beta^2 / 2 \sigma^2`, with the probabilities
    :math:`r_1 = \rho` of the slab and :math:`r_0 = 1 - \rho` of the spike. The derivative of the
    prior's part of -Q is then :math:`L\, \mathrm{sign}(\beta) / \sigma + K \beta / \sigma^2`. For
    SSGL they are :math:`\kappa_0 = (1 - \rho) / v_0` and :math:`\kappa_1 = \rho / v_1`.

    :param Tensor share: running average of rho, shape (..., P).
    :param excess: the remainder of the initial values, :math:`r_0 + r_1 - 1`.
    :param Component spike: the component of gamma = 0.
    :param Component slab: the component of gamma = 1.
    :param u: :math:`|\beta| / \sigma`, shape (..., P); needed if a component bends.
    :returns: L and K, each of shape (..., P), None if no component has such a penalty.
    """
    return (
        _blend(share, excess, spike.linear, slab.linear),
        _blend(share, excess, spike.quadratic(u), slab.quadratic(u)),
    )


def penalties_of(
    share: Tensor, component: Component, u: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """
    Return one component's part of :func:`penalties`, L and K.

    :param Tensor share: its probabilities, shape (..., P).
    """
    return (
        _blend(share, 0.0, 0.0, component.linear),
        _blend(share, 0.0, 0.0, component.quadratic(u)),
    )


def _blend(share: Tensor, excess: Number, spike: Number, slab: Number) -> Tensor | None:
    """Return (1 + excess - share) spike + share slab."""
    no_spike = isinstance(spike, float) and spike == 0.0
    no_slab = isinstance(slab, float) and slab == 0.0
    if no_spike:
        return None if no_slab else share * slab
    if no_slab and isinstance(spike, float) and isinstance(excess, float):
        return torch.rsub(share, (1.0 + excess) * spike, alpha=spike)  # in one pass
    rest = 1.0 + excess - share
    if no_slab:
        return rest * spike
    if isinstance(slab, float):
        return (rest * spike).add_(share, alpha=slab)
    return (rest * spike).addcmul_(share, slab)


def log(x: Number) -> Number:
    """Return the logarithm of a number or a tensor, minus infinity for 0."""
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x > 0 else -math.inf


def _lgamma(x: Number) -> Number:
    return x.lgamma() if isinstance(x, Tensor) else math.lgamma(x)
