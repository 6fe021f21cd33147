# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The spike-and-slab prior of a sparse weight.

Equation numbers are those of Deng, Zhang, Liang, Lin, "An Adaptive Empirical Bayesian Method for
Sparse Deep Learning" (NeurIPS 2019, https://arxiv.org/abs/1910.10791), as this package's page of
equations lists them.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor

__all__ = ["SSGL", "inclusion_logit"]

# Farther out than this many sigma, (4) answers as it does here: squares stay finite in float32.
_FAR = 1e15

_ENTROPY_NODES = 256

_ADVICE = {
    "v0": "the Laplace component has scale sigma * v0; v0 = 0.1 is a usual value in regression",
    "v1": "the Gaussian component has variance sigma**2 * v1; v1 = 10 is a usual value in "
    "regression",
    "delta": "delta is the probability of the Gaussian component; of a logit, pass its sigmoid",
    "sigma": "sigma is a scale; of a variance sigma2, pass sigma2.sqrt(), and of a logarithm, "
    "its exponential",
}


def _as_float(number: int) -> float:
    """Of an integer beyond all floats, infinity, which the check of parameters refuses."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def inclusion_logit(
    value: Tensor,
    v0: Tensor | float,
    v1: Tensor | float,
    delta: Tensor | float,
    sigma: Tensor | float,
) -> Tensor:
    """
    The logit of equation (4) for a prior probability ``delta``; see :func:`inclusion_logit_of`. It
    is NaN only where an argument is: with a delta of 0 or 1 it is infinite for any value.

    :param Tensor value: weights. All arguments broadcast.
    :param v0: scale of the Laplace component, in units of ``sigma``.
    :param v1: variance of the Gaussian component, in units of ``sigma ** 2``.
    :param delta: prior probability of the Gaussian component.
    :param sigma: scale that both components share.
    """
    if not isinstance(delta, Tensor):
        delta = value.new_tensor(delta)
    return inclusion_logit_of((value.abs() / sigma).clamp(max=_FAR), v0, v1, torch.logit(delta))


def inclusion_logit_of(u: Tensor, v0: Tensor | float, v1: Tensor | float, prior: Tensor) -> Tensor:
    """
    The logit of equation (4), the probability that a weight belongs to the Gaussian component::

        logit P(gamma = 1 | value) = logit(delta) + log N(value; 0, sigma**2 v1)
                                                  - log Laplace(value; 0, sigma v0)
            = logit(delta) + log(2 v0) - log(2 pi v1) / 2 + u / v0 - u**2 / (2 v1)

    with ``u = abs(value) / sigma``.

    :param Tensor u: size of the weights, in units of ``sigma``. All arguments broadcast.
    :param v0: scale of the Laplace component, in units of ``sigma``.
    :param v1: variance of the Gaussian component, in units of ``sigma ** 2``.
    :param Tensor prior: logit(delta).
    """
    constant = prior + (_log(2 * v0) - 0.5 * _log(2 * math.pi * v1))
    if isinstance(v0, float) and isinstance(v1, float):
        slope = torch.rsub(u, 1 / v0, alpha=0.5 / v1)
    else:
        slope = 1 / v0 - u / (2 * v1)
    return torch.addcmul(constant, u, slope)


class SSGL(TorchDistribution):
    """
    Spike-and-slab Gaussian-Laplace distribution: equation (1) with ``gamma`` summed out::

        gamma         ~ Bernoulli(delta)
        value | gamma ~ Laplace(0, scale = sigma * v0)           if gamma = 0
                        Normal(0, variance = sigma**2 * v1)      if gamma = 1

    Which component is the narrow *spike* depends on ``v0`` and ``v1``.

    Parameters are kept as they were passed, in :attr:`given`, and broadcast when they are asked
    for: constructing and expanding an instance costs no tensor operation where validation is off.

    :param v0: scale of the Laplace component, in units of ``sigma``; positive.
    :param v1: variance of the Gaussian component, in units of ``sigma ** 2``; positive.
    :param delta: probability of the Gaussian component, in [0, 1].
    :param sigma: scale that both components share; positive.

    Each is a number or a floating point tensor, and they broadcast to the ``batch_shape``.
    """

    arg_constraints = {
        "v0": constraints.positive,
        "v1": constraints.positive,
        "delta": constraints.unit_interval,
        "sigma": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    given: dict[str, Tensor | float]
    """The parameters by name, as they were passed: not broadcast, numbers still numbers."""

    def __init__(
        self,
        v0: Tensor | float,
        v1: Tensor | float,
        delta: Tensor | float,
        sigma: Tensor | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.given = {"v0": v0, "v1": v1, "delta": delta, "sigma": sigma}
        shapes = set()
        for name, parameter in self.given.items():
            if isinstance(parameter, Tensor) and parameter.is_floating_point():
                shapes.add(parameter.shape)
            elif isinstance(parameter, int):
                self.given[name] = _as_float(parameter)
            elif not isinstance(parameter, float):
                found = getattr(parameter, "dtype", type(parameter).__name__)
                raise TypeError(
                    f"SSGL expects {name} to be a number or a floating point tensor, but found "
                    f"{found}; convert it with float() or torch.as_tensor(..., dtype=torch.float)"
                )
        batch_shape = shapes.pop() if len(shapes) == 1 else self._common_shape(shapes)
        validate_args = self._validate_args if validate_args is None else validate_args
        if validate_args:
            self._check_parameters()
        super().__init__(torch.Size(batch_shape), validate_args=False)
        self._validate_args = validate_args

    def _common_shape(self, shapes: set[torch.Size]) -> torch.Size:
        # torch.broadcast_shapes takes 0.2 ms, and at first some seconds to import.
        axes = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
        sizes = [{*axis} - {1} for axis in axes]
        if any(len(size) > 1 for size in sizes):
            found = {n: tuple(p.shape) for n, p in self.given.items() if isinstance(p, Tensor)}
            raise ValueError(
                f"SSGL expects v0, v1, delta and sigma to broadcast, but found shapes {found}; "
                "sizes of an axis must be equal, or 1"
            )
        return torch.Size(size.pop() if size else 1 for size in reversed(sizes))

    def _check_parameters(self) -> None:
        """Raises for a parameter outside its constraint, or infinite, and says what to do."""
        for name, parameter in self.given.items():
            values = torch.as_tensor(parameter)
            good = self.arg_constraints[name].check(values) & (values < math.inf)
            if not good.all():
                bad = values[~good]
                expected = "in [0, 1]" if name == "delta" else "positive and finite"
                among = f" ({bad.numel()} of {values.numel()} values)" if values.dim() else ""
                raise ValueError(
                    f"SSGL expects {name} to be {expected}, but found {bad[0].item():g}{among}: "
                    f"{_ADVICE[name]}"
                )

    def expand(self, batch_shape: Any, _instance: Any = None) -> SSGL:
        new = self._get_checked_instance(SSGL, _instance)
        old, batch_shape = self._batch_shape, torch.Size(batch_shape)
        pairs = zip(reversed(old), reversed(batch_shape), strict=False)
        if len(old) > len(batch_shape) or any(size not in (1, other) for size, other in pairs):
            raise ValueError(
                f"Cannot expand SSGL of batch_shape {tuple(old)} to {tuple(batch_shape)}"
            )
        new.given = self.given
        super(SSGL, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _tensor(self, name: str) -> Tensor:
        """A parameter as a tensor of its own shape; a number takes after the other parameters."""
        parameter = self.given[name]
        if isinstance(parameter, Tensor):
            return parameter
        for other in self.given.values():
            if isinstance(other, Tensor):
                return detach_provenance(other).new_tensor(parameter)
        return torch.tensor(float(parameter))

    @property
    def v0(self) -> Tensor:
        """Scale of the Laplace component in units of ``sigma``, shape ``batch_shape``."""
        return self._tensor("v0").expand(self._batch_shape)

    @property
    def v1(self) -> Tensor:
        """Variance of the Gaussian component, units of ``sigma ** 2``, shape ``batch_shape``."""
        return self._tensor("v1").expand(self._batch_shape)

    @property
    def delta(self) -> Tensor:
        """Probability of the Gaussian component, shape ``batch_shape``."""
        return self._tensor("delta").expand(self._batch_shape)

    @property
    def sigma(self) -> Tensor:
        """Scale that both components share, shape ``batch_shape``."""
        return self._tensor("sigma").expand(self._batch_shape)

    @property
    def parameter_provenance(self) -> dict[str, frozenset]:
        """
        The provenance of every parameter as it was passed. Broadcasting parameters together would
        merge them. See :mod:`pyro.ops.provenance`.
        """
        return {name: get_provenance(parameter) for name, parameter in self.given.items()}

    @property
    def laplace(self) -> dist.Laplace:
        """The component of ``gamma = 0``."""
        scale = self.sigma * self.v0
        return dist.Laplace(torch.zeros_like(scale), scale, validate_args=False)

    @property
    def gaussian(self) -> dist.Normal:
        """The component of ``gamma = 1``."""
        scale = self.sigma * self.v1.sqrt()
        return dist.Normal(torch.zeros_like(scale), scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.sigma)

    @property
    def variance(self) -> Tensor:
        laplace = (1 - self.delta) * 2 * self.v0.square()
        return self.sigma.square() * (laplace + self.delta * self.v1)

    def _checked(self, value: Tensor) -> Tensor:
        """A value to be scored, validated where asked for and broadcast with ``batch_shape``."""
        if self._validate_args:
            self._validate_sample(value)
        if value.shape == self._batch_shape:
            return value
        return value.expand(torch.broadcast_shapes(value.shape, self._batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """
        The logarithm of the density of equation (1), ``gamma`` summed out. The derivative of
        ``abs(value)`` at 0 is taken to be 0.
        """
        v0, v1, delta, sigma = self.given.values()
        u = self._checked(value).abs() / sigma
        laplace = -u / v0 - _log(2 * v0)
        gaussian = u.square() / (-2 * v1) - 0.5 * _log(2 * math.pi * v1)
        # logaddexp(log(1 - delta) + laplace, log(delta) + gaussian), but with the weights outside
        # the exponential, as log(delta) has no derivative at 0.
        with torch.no_grad():
            peak = torch.maximum(laplace + _log(1 - delta), gaussian + _log(delta))
            peak = peak.clamp(min=torch.finfo(u.dtype).min)
        density = (1 - delta) * _exp(laplace - peak) + delta * _exp(gaussian - peak)
        return peak + density.log() - _log(sigma)

    def inclusion(self, value: Tensor) -> Tensor:
        """
        Equation (4): the probability of ``gamma = 1``, the Gaussian component, given a value.

        :param Tensor value: weights that broadcast with ``batch_shape``.
        """
        return torch.sigmoid(inclusion_logit(self._checked(value), **self.given))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        sigma = detach_provenance(self._tensor("sigma"))
        uniform, normal, first, second = sigma.new_empty((4, *self._extended_shape(sample_shape)))
        laplace = self.v0 * (first.exponential_() - second.exponential_())
        gaussian = self.v1.sqrt() * normal.normal_()
        return self.sigma * torch.where(uniform.uniform_() < self.delta, gaussian, laplace)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """
        A sample with derivatives in all four parameters by implicit reparameterisation (Figurnov,
        Mohamed, Mnih 2018, https://arxiv.org/abs/1805.08498), as the component is a discrete
        choice.
        """
        value = self.sample(sample_shape)
        parameters = (self.v0, self.v1, self.delta, self.sigma)
        arguments = [value, *(parameter.expand(value.shape) for parameter in parameters)]
        # A tensor subclass does not survive an autograd.Function.
        value = _Implicit.apply(*map(detach_provenance, arguments))
        return track_provenance(value, get_provenance(arguments))

    def cdf(self, value: Tensor) -> Tensor:
        """The cumulative distribution function, to full relative precision in the lower tail."""
        return self._cdf(self._checked(value))

    def _cdf(self, value: Tensor) -> Tensor:
        v0, v1, delta, sigma = self.given.values()
        u = value / sigma
        # Not abs, whose derivative at 0 is 0, and not torch.special.ndtr: its lower tail is 0.
        tail = 0.5 * (torch.where(u < 0, u, -u) / v0).exp()
        laplace = torch.where(u < 0, tail, 1 - tail)
        gaussian = 0.5 * torch.erfc(u / -math.sqrt(2) / v1**0.5)
        return (1 - delta) * laplace + delta * gaussian

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """
        The quantile function, by bisection until floating point numbers run out: there is no
        closed form. It has no derivative.

        :param Tensor value: probabilities that broadcast with ``batch_shape``.
        """
        # The lower tail holds the precision, and the distribution is symmetric.
        tail = torch.minimum(value, 1 - value)
        laplace = self.laplace.scale * (2 * tail).log()
        gaussian = self.gaussian.scale * torch.special.ndtri(tail)
        # The mixture's quantile lies between those of the components.
        low, high = torch.minimum(laplace, gaussian), torch.maximum(laplace, gaussian)
        while True:
            middle = 0.5 * low + 0.5 * high
            if not ((low < middle) & (middle < high)).any():
                return torch.where(value < 0.5, middle, -middle)
            below = self._cdf(middle) < tail
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)

    def entropy(self) -> Tensor:
        """
        The differential entropy in nats, by quadrature: there is no closed form.

        The absolute error is below 1e-9 in float64, and rounding error, about 1e-5, in float32,
        wherever the two scales are within a factor of 10 ** 6 of one another.
        """
        v0, v1, delta, sigma = map(self._tensor, self.given)
        with torch.no_grad():
            # The trapezoidal rule in t, where u = abs(value) / sigma is narrow * exp(t - exp(-t)):
            # equal steps of log(u) resolve both scales, and exp(-t) ends the sum on the left.
            narrow, wide = torch.minimum(v0, v1.sqrt()), torch.maximum(v0, v1.sqrt())
            start, end = -4.0, (40 * wide / narrow).log()
            step = (end - start) / _ENTROPY_NODES
            t = torch.arange(_ENTROPY_NODES).to(step)
            t = start + step * t.reshape((-1,) + (1,) * len(self._batch_shape))
            u = narrow * (t - (-t).exp()).exp()
            weight = 2 * step * u * (1 + (-t).exp())
        log_prob = SSGL(v0, v1, delta, validate_args=False).log_prob(u)
        entropy = sigma.log() - (weight * log_prob.exp() * log_prob).sum(0)
        return entropy.expand(self._batch_shape)

    def __repr__(self) -> str:
        parameters = [
            f"{name}: {p.shape if isinstance(p, Tensor) and p.dim() else format(p, '.6g')}"
            for name, p in self.given.items()
        ]
        if self._batch_shape:
            parameters.append(f"batch_shape: {tuple(self._batch_shape)}")
        return f"SSGL({', '.join(parameters)})"


class _Implicit(torch.autograd.Function):
    """
    A sample as a function of the parameters, which it shares its shape with. With ``F`` the cdf
    and ``p`` the density, ``dx = -dF(x) / p(x)``, and the terms of ``dF`` are those of a change of
    scale in either component, and the components' difference for ``delta``.

    The derivative is itself made of differentiable operations.
    """

    @staticmethod
    def forward(value: Tensor, *parameters: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, v0, v1, delta, sigma = ctx.saved_tensors
        # The components' densities over the mixture's, without 0 / 0 in the tails.
        limit = 0.9 * math.log(torch.finfo(value.dtype).max)
        ratio = inclusion_logit(value, v0, v1, 0.5, sigma).clamp(-limit, limit)
        laplace = 1 / (1 - delta + delta * ratio.exp())
        gaussian = 1 / (delta + (1 - delta) * (-ratio).exp())
        # The upper tails of the components at abs(value), over the density of the mixture.
        sd = sigma * v1.sqrt()
        mills = math.sqrt(math.pi / 2) * torch.special.erfcx(value.abs() / (math.sqrt(2) * sd))
        tails = sd * mills * gaussian - sigma * v0 * laplace
        return (
            None,
            grad * (1 - delta) * laplace * value / v0,
            grad * delta * gaussian * value / (2 * v1),
            grad * value.sign() * tails,
            grad * value / sigma,
        )


def _log(x: Tensor | float) -> Tensor | float:
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x > 0 else -math.inf


def _exp(x: Tensor) -> Tensor:
    """The exponential, held finite so that a weight of 0 makes it 0."""
    return x.clamp(max=math.floor(math.log(torch.finfo(x.dtype).max))).exp()
