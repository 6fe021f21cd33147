# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A network's priors, as plain numbers, and the distributions that do not change from step to step.

These depend on no sampled value, so there is one instance for each dtype and device. They are
created outside of inference mode: a tensor that was created in it takes no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from numbers import Real
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.constraints import real
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_aeb.errors import ModelError, shorten
from pyro_aeb.nn.layers import Weight, layer_of
from pyro_aeb.validation import number, positive

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
    :param bool pretrained: whether the Normal's means are the module's weights; else they are zero.
    :param dense: the distribution of one dense weight, in place of the Normal.
    """

    v0: float
    v1: float
    delta: float | tuple[float, float]
    sigma2: float | tuple[float, float]
    dense_scale: float
    by_unit: bool = False
    pretrained: bool = False
    dense: Any = None

    def __str__(self) -> str:
        delta, sigma2 = (
            f" ~ {name}({p[0]:g}, {p[1]:g})" if isinstance(p, tuple) else f"={p:g}"
            for name, p in (("Beta", self.delta), ("InverseGamma", self.sigma2))
        )
        return (
            f"SSGL(v0={self.v0:g}, v1={self.v1:g}, delta{delta}, sigma2{sigma2})"
            f"{' by unit' if self.by_unit else ''}, "
            f"Normal({'pretrained' if self.pretrained else 0}, {self.dense_scale:g})"
        )


def select_priors(
    priors: Priors, by_layer: Mapping[str, Any], weights: Sequence[Weight]
) -> dict[str, Priors]:
    """
    Return the priors of every weight by its site's name, without prefix.

    :param priors: where no pattern matches.
    :param by_layer: patterns of layers or parameters to options or a distribution; of several that
        match, the last one counts.
    :raises TypeError: if ``by_layer`` is of the wrong kind.
    :raises ValueError: if an option is out of range.
    :raises ModelError: if a pattern or an option of it matches no weight, or sparse weights of one
        layer have different options.
    """
    if not isinstance(by_layer, Mapping):
        raise TypeError(
            f"priors is {by_layer!r}, expected a mapping of patterns for layers or parameters, "
            'such as {"*.conv*": {"v0": 0.01}, "*.bias": dist.Laplace(0.0, 1.0)}'
        )
    selected = {weight.name: priors for weight in weights}
    for pattern, value in by_layer.items():
        options = _read_options(pattern, value)
        matches = [weight for weight in weights if _matches(weight, pattern)]
        for option in options:
            sparse = option in _OF_SPARSE
            chosen = [weight for weight in matches if weight.sparse == sparse]
            if not chosen:
                kind, known = "sparse" if sparse else "dense", [w.name for w in weights]
                raise ModelError(
                    f"priors[{pattern!r}] gives {option} and finds no {kind} weight, expected the "
                    f"name of a layer or parameter, or a pattern; there are {shorten(known)}"
                )
            for weight in chosen:
                new = replace(selected[weight.name], **{option: options[option]})
                selected[weight.name] = new
    layers: dict[str, Priors] = {}
    for weight in weights:
        if (
            weight.sparse
            and layers.setdefault(weight.layer, selected[weight.name]) != (selected[weight.name])
        ):
            raise ModelError(
                f"the sparse weights of layer {weight.layer!r} have different options in priors, "
                "expected the same v0, v1 and delta; use patterns for layers, not for parameters"
            )
    return selected


def _matches(weight: Weight, pattern: str) -> bool:
    names = (*weight.names, *map(layer_of, weight.names))
    return any(fnmatchcase(name, pattern) for name in names)


def _read_options(pattern: Any, value: Any) -> dict[str, Any]:
    """
    Return the options that ``priors`` gives for a pattern.

    :raises TypeError: if they are of the wrong kind.
    :raises ValueError: if one is unknown or out of range.
    """
    name = f"priors[{pattern!r}]"
    if isinstance(value, TorchDistributionMixin):
        if value.batch_shape.numel() != 1 or value.event_shape or value.support is not real:
            raise ValueError(
                f"{name} is {value}, expected the distribution of one real number, which all dense "
                "weights that match have independently"
            )
        return {"dense": value}
    if not isinstance(value, Mapping) or not isinstance(pattern, str):
        raise TypeError(
            f"{name} is {value!r}, expected options by layer, such as "
            '{"v0": 0.01, "dense_scale": 0.1}, or a distribution of pyro.distributions'
        )
    if unknown := [option for option in value if option not in _READERS]:
        raise ValueError(
            f"{name} has the option {unknown[0]!r}, expected some of {sorted(_READERS)}; sigma2 is "
            "one for all layers"
        )
    options = {option: _READERS[option](option, x) for option, x in value.items()}
    return options | ({"dense": None} if "dense_scale" in options else {})


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


_OF_SPARSE = ("v0", "v1", "delta")
_READERS: dict[str, Callable[[str, Any], Any]] = {
    "v0": positive,
    "v1": positive,
    "delta": lambda _, value: delta_prior(value),
    "dense_scale": positive,
}
"""The options that may differ from layer to layer, and what reads them."""


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


def pretrained_normal(weights: Tensor, scale: float) -> Any:
    """Return independent Normal(weights, scale) distributions."""
    with torch.inference_mode(False):
        loc = weights.detach().clone()
        prior = dist.Normal(loc, torch.full_like(loc, scale), validate_args=False)
    return prior.to_event(loc.dim())


@lru_cache(maxsize=1024)
def independent(
    distribution: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return independent distributions of a shape, each as the distribution of one number."""
    with torch.inference_mode(False):
        parameters = {
            name: torch.as_tensor(getattr(distribution, name)).reshape(()).to(device, dtype)
            for name in distribution.arg_constraints
        }
        one = type(distribution)(**parameters, validate_args=False)
        return one.expand(shape).to_event(len(shape))


@lru_cache(maxsize=1024)
def hyperprior(family: Any, a: float, b: float, dtype: torch.dtype, device: torch.device) -> Any:
    """
    Return the Beta(a, b) or InverseGamma(a, b) distribution of one number.

    :raises ValueError: if a or b is not positive.
    """
    parameters = [scalar(value, dtype, device) for value in (a, b)]
    with torch.inference_mode(False):
        family(*parameters, validate_args=True)
        # Checks of values are branches on them, with which a step could not be compiled.
        return family(*parameters, validate_args=False)
