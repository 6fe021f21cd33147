# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The base class of spike-and-slab distributions.

A custom one is a subclass of :class:`SpikeAndSlab` that names its parameters and makes two
:mod:`components <pyro_aeb.priors.components>` of them. The kernel needs nothing else.

Equation numbers are those of Deng, Zhang, Liang, Lin, "An Adaptive Empirical Bayesian Method for
Sparse Deep Learning" (NeurIPS 2019, https://arxiv.org/abs/1910.10791), as this package's page of
equations lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor

from pyro_aeb.priors.components import Component, Number, inclusion_logit, log

# Equation (4) is computed at no more than this many sigma: squares are finite in float32.
_FAR = 1e15

SHARED_ADVICE = {
    "delta": "delta is the probability of the slab, gamma = 1; of a logit, pass its sigmoid",
    "sigma": "sigma is a scale; of a variance sigma2, pass sigma2.sqrt(), and of a logarithm, "
    "its exponential",
}


def parameter(name: str, doc: str) -> Any:
    """Make a property that returns a parameter, of shape ``batch_shape``."""
    return property(lambda self: self.tensor(name).expand(self.batch_shape), doc=doc)


class SpikeAndSlab(TorchDistribution):
    """
    A mixture of two components, symmetric about 0, that share a scale, with ``gamma`` summed out::

        gamma                 ~ Bernoulli(delta)
        value / sigma | gamma ~ spike   if gamma = 0
                                slab    if gamma = 1

    Which component is the narrow one depends on the parameters. Each parameter is a number or a
    floating point tensor, and they broadcast to the ``batch_shape``. They are stored as passed, in
    :attr:`given`, and broadcast on access: without validation, constructing and expanding an
    instance costs no tensor operation.

    :param shape: the parameters of the two components by name, in the order of
        :attr:`components`.
    :param delta: probability of the slab, in [0, 1].
    :param sigma: scale that both components share; positive.
    """

    arg_constraints = {"delta": constraints.unit_interval, "sigma": constraints.positive}
    support = constraints.real
    advice: ClassVar[Mapping[str, str]] = {}
    """The advice in the error about an invalid parameter of the components, by name."""
    components: ClassVar[Callable[..., tuple[Component, Component]]]
    """
    A static method that returns the spike and the slab, in units of sigma, from all parameters but
    delta and sigma.
    """

    given: dict[str, Number]
    """The parameters by name, as they were passed: numbers or tensors, not broadcast."""

    delta = parameter("delta", "Probability of the slab, shape ``batch_shape``.")
    sigma = parameter("sigma", "Scale that both components share, shape ``batch_shape``.")

    def __init__(
        self, shape: Mapping[str, Number], delta: Number, sigma: Number, validate_args: bool | None
    ) -> None:
        self.given = {**shape, "delta": delta, "sigma": sigma}
        shapes = set()
        for name, value in self.given.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                shapes.add(value.shape)
            elif isinstance(value, int):
                self.given[name] = _to_float(value)
            elif not isinstance(value, float):
                kind = getattr(value, "dtype", type(value).__name__)
                raise TypeError(
                    f"{type(self).__name__} expects {name} to be a number or a floating point "
                    f"tensor, but found {kind}; convert it with float() or "
                    "torch.as_tensor(..., dtype=torch.float)"
                )
        batch_shape = shapes.pop() if len(shapes) == 1 else self._common_shape(shapes)
        validate_args = self._validate_args if validate_args is None else validate_args
        if validate_args:
            self._check_parameters()
        super().__init__(torch.Size(batch_shape), validate_args=False)
        self._validate_args = validate_args

    def _common_shape(self, shapes: set[torch.Size]) -> torch.Size:
        # torch.broadcast_shapes takes 0.2 ms, and seconds for its imports at the first call.
        axes = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
        sizes = [{*axis} - {1} for axis in axes]
        if any(len(size) > 1 for size in sizes):
            by_name = {n: tuple(p.shape) for n, p in self.given.items() if isinstance(p, Tensor)}
            *names, last = self.given
            raise ValueError(
                f"{type(self).__name__} expects {', '.join(names)} and {last} to broadcast, but "
                f"found shapes {by_name}; sizes of an axis must be equal, or 1"
            )
        return torch.Size(size.pop() if size else 1 for size in reversed(sizes))

    def _check_parameters(self) -> None:
        advice = {**SHARED_ADVICE, **self.advice}
        for name, value in self.given.items():
            if self._is_valid_number(name, value):
                continue
            values = torch.as_tensor(value)
            valid = self.arg_constraints[name].check(values) & (values < math.inf)
            if not valid.all():
                bad = values[~valid]
                expected = "in [0, 1]" if name == "delta" else "positive and finite"
                among = f" ({bad.numel()} of {values.numel()} values)" if values.dim() else ""
                raise ValueError(
                    f"{type(self).__name__} expects {name} to be {expected}, but found "
                    f"{bad[0].item():g}{among}: {advice[name]}"
                )

    def _is_valid_number(self, name: str, value: Number) -> bool:
        """Whether a parameter is one number, certainly valid; this is quick."""
        if type(value) is Tensor and value.numel() == 1:
            value = value.item()
        if isinstance(value, Tensor):
            return False
        if self.arg_constraints[name] is constraints.unit_interval:
            return 0.0 <= value <= 1.0
        return self.arg_constraints[name] is constraints.positive and 1e-30 < value < 1e30

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        old, batch_shape = self._batch_shape, torch.Size(batch_shape)
        pairs = zip(reversed(old), reversed(batch_shape), strict=False)
        if len(old) > len(batch_shape) or any(size not in (1, other) for size, other in pairs):
            raise ValueError(
                f"Cannot expand {type(self).__name__} of batch_shape {tuple(old)} to "
                f"{tuple(batch_shape)}"
            )
        new.given = self.given
        super(SpikeAndSlab, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def tensor(self, name: str) -> Tensor:
        """Return a parameter as a tensor, not broadcast. A number gets the others' dtype."""
        value = self.given[name]
        if isinstance(value, Tensor):
            return value
        for other in self.given.values():
            if isinstance(other, Tensor):
                return detach_provenance(other).new_tensor(value)
        return torch.tensor(float(value))

    @property
    def shape_parameters(self) -> dict[str, Number]:
        """The parameters of the components, as they were passed: all but delta and sigma."""
        return {n: v for n, v in self.given.items() if n not in ("delta", "sigma")}

    @property
    def parameter_provenance(self) -> dict[str, frozenset]:
        """
        The provenance of every parameter as it was passed; broadcasting merges it. See
        :mod:`pyro.ops.provenance`.
        """
        return {name: get_provenance(value) for name, value in self.given.items()}

    @property
    def parts(self) -> tuple[Component, Component]:
        """The spike and the slab, in units of sigma."""
        return self.components(*self.shape_parameters.values())

    @property
    def densities(self) -> tuple[Any, Any]:
        """The spike and the slab as distributions of Pyro, of shape ``batch_shape``."""
        spike, slab = self.parts
        return spike.distribution(self.sigma), slab.distribution(self.sigma)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.sigma)

    @property
    def variance(self) -> Tensor:
        spike, slab = self.parts
        delta = self.delta
        mixed = (1 - delta) * spike.variance
        # Not 0 times infinity, where a variance is infinite.
        mixed = mixed + torch.where(delta > 0, delta * slab.variance, torch.zeros_like(delta))
        return self.sigma.square() * mixed

    def prepare(self, value: Tensor) -> Tensor:
        """Return a value broadcast with ``batch_shape``, validated if validation is on."""
        if self._validate_args:
            self._validate_sample(value)
        if value.shape == self._batch_shape:
            return value
        return value.expand(torch.broadcast_shapes(value.shape, self._batch_shape))

    def log_densities(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log densities of spike and slab, in units of sigma."""
        u = self.prepare(value).abs() / self.given["sigma"]
        spike, slab = self.parts
        return spike.log_density(u), slab.log_density(u)

    def log_prob(self, value: Tensor) -> Tensor:
        """
        Return the log density of equation (1), ``gamma`` summed out. The derivative of
        ``abs(value)`` at 0 is taken to be 0.
        """
        densities = self.log_densities(value)
        return log_mixture(*densities, self.given["delta"]) - log(self.given["sigma"])

    def inclusion_logit(self, value: Tensor) -> Tensor:
        """
        Return the logit of equation (4): of the probability of ``gamma = 1``, the slab, given a
        value. With a delta of 0 or 1 it is infinite for any value; it is NaN only where an argument
        is.

        :param Tensor value: weights that broadcast with ``batch_shape``.
        """
        value, delta = self.prepare(value), self.given["delta"]
        if not isinstance(delta, Tensor):
            delta = value.new_tensor(delta)
        u = (value.abs() / self.given["sigma"]).clamp(max=_FAR)
        return inclusion_logit(u, torch.logit(delta), *self.parts)

    def inclusion(self, value: Tensor) -> Tensor:
        """
        Return the probability of ``gamma = 1``, the slab, given a value: equation (4).

        :param Tensor value: weights that broadcast with ``batch_shape``.
        """
        return torch.sigmoid(self.inclusion_logit(value))

    def sample_components(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Sample the spike and the slab, in units of sigma."""
        like = detach_provenance(self.tensor("sigma")).new_empty(shape)
        spike, slab = self.parts
        return spike.sample(like), slab.sample(like)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        spike, slab = self.sample_components(self._extended_shape(sample_shape))
        included = torch.rand_like(detach_provenance(spike)) < self.delta
        return self.sigma * torch.where(included, slab, spike)

    def __repr__(self) -> str:
        parts = [
            f"{name}: {p.shape if isinstance(p, Tensor) and p.dim() else format(p, '.6g')}"
            for name, p in self.given.items()
        ]
        if self._batch_shape:
            parts.append(f"batch_shape: {tuple(self._batch_shape)}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _to_float(number: int) -> float:
    """Convert an integer to float; overflow becomes infinity, which validation rejects."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def log_mixture(spike: Tensor, slab: Tensor, delta: Number) -> Tensor:
    """
    Return log((1 - delta) exp(spike) + delta exp(slab)). The weights stay outside of the
    exponentials: log(delta) has no derivative at 0.
    """
    with torch.no_grad():
        peak = torch.maximum(spike + log(1 - delta), slab + log(delta))
        peak = peak.clamp(min=torch.finfo(spike.dtype).min)
    density = (1 - delta) * _exp(spike - peak) + delta * _exp(slab - peak)
    return peak + density.log()


def _exp(x: Tensor) -> Tensor:
    """Return the exponential, kept finite so that 0 times it is 0."""
    return x.clamp(max=math.floor(math.log(torch.finfo(x.dtype).max))).exp()
