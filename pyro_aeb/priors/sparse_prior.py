# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A spike-and-slab prior of linear weights whose settings follow from the data's size and units."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.priors.ssgl import SSGL
from pyro_aeb.validation import positive

SHARE = 0.1
"""Share of the targets' variance that the prior of the noise stands for."""


class SparsePrior:
    r"""
    An :class:`~pyro_aeb.priors.SSGL` prior of the weights of p features, without settings::

        prior = aeb.priors.SparsePrior(X, y)

        def model(X, y=None):
            beta, sigma = prior.sample("beta")
            with pyro.plate("data", len(X)):
                return pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

        kernel = aeb.AEBKernel(model, adaptation=aeb.Gibbs())

    It is made once, of all data, and is the same for minibatches and for predictions. With the sd
    :math:`s_j` of a feature, the spike has scale :math:`\sigma v_0 / s_j` and the slab variance
    :math:`\sigma^2 v_1 / s_j^2`, so that units change nothing. Of a feature that is constant
    :math:`s_j` is its size. By default

    - :math:`v_0 = \min((0.05 / p)^{1/2}, 0.5 / n^{1/2})`: all spikes together explain at most a
      tenth of the noise, and a spike is at most half as wide as the standard error of a weight;
    - :math:`\delta \sim \mathrm{Beta}(2, p)`, so that one feature or two would not surprise;
    - :math:`\sigma^2 \sim \mathrm{InverseGamma}(1/2, 0.05\,\mathrm{var}(y))`, which weighs as much
      as one datum.

    :param Tensor features: X, shape (n, p), of all data.
    :param y: targets of a Normal or StudentT likelihood, shape (n,), whose scale is the sigma that
        :meth:`sample` returns. None for likelihoods without one, such as Bernoulli: sigma is 1.
    :param float v0: width of the spike.
    :param float v1: variance of the slab: effects up to some three times the noise are expected.
        Raise it for larger ones.
    :raises TypeError: if the data are no floating point tensors.
    :raises ValueError: if their shapes do not fit, or values are not finite.
    """

    def __init__(
        self, features: Tensor, y: Tensor | None = None, *, v0: Any = None, v1: float = 10.0
    ) -> None:
        _check_data(features, y)
        n, p = features.shape
        self.features = p
        width = min((0.05 / p) ** 0.5, 0.5 / n**0.5)
        self.v0 = width if v0 is None else positive("SparsePrior: v0", v0)
        self.v1 = positive("SparsePrior: v1", v1)
        size = features.square().mean(0).sqrt()
        sd = features.std(0, correction=0)
        sd = torch.where(sd > 1e-5 * size, sd, size)
        self._scale = torch.where(sd > 0.0, sd, torch.ones_like(sd))
        self._variance = None if y is None else float(y.var(correction=0)) or 1.0
        self._one = features.new_ones(())

    def sample(self, name: str) -> tuple[Tensor, Tensor]:
        """
        Sample the weights, ``<name>.delta`` and, if there are targets, ``<name>.sigma2``.

        :returns: the weights, shape (p,), and sigma.
        """
        one, sigma = self._one, self._one
        if self._variance is not None:
            prior = dist.InverseGamma(0.5 * one, 0.5 * SHARE * self._variance * one)
            infer: Any = {"init_value": self._variance * one}
            sigma = pyro.sample(f"{name}.sigma2", prior, infer=infer).sqrt()
        delta = pyro.sample(f"{name}.delta", dist.Beta(2.0 * one, self.features * one))
        v0, v1 = self.v0 / self._scale, self.v1 / self._scale.square()
        return pyro.sample(name, SSGL(v0, v1, delta, sigma).to_event(1)), sigma

    def __repr__(self) -> str:
        noise = f"InverseGamma(0.5, {0.5 * SHARE * (self._variance or 0.0):.3g})"
        sigma = "sigma=1" if self._variance is None else f"sigma2 ~ {noise}"
        return (
            f"SparsePrior({self.features} features of sd {float(self._scale.min()):.3g} to "
            f"{float(self._scale.max()):.3g}: v0={self.v0:.3g}, v1={self.v1:.3g}, "
            f"delta ~ Beta(2, {self.features}), {sigma})"
        )


def _check_data(features: Any, y: Any) -> None:
    """Check kinds, shapes and values."""
    tensors = [features] if y is None else [features, y]
    for value in tensors:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"SparsePrior: found {kind}, expected floating point tensors: "
                "SparsePrior(torch.as_tensor(X, dtype=torch.float), ...)"
            )
    if features.dim() != 2 or features.numel() == 0:
        raise ValueError(
            f"SparsePrior: features have shape {tuple(features.shape)}, expected (data, features)"
        )
    if y is not None and y.shape != features.shape[:1]:
        raise ValueError(
            f"SparsePrior: targets have shape {tuple(y.shape)}, expected {(len(features),)}, one "
            "for every row of the features"
        )
    if not all(bool(torch.isfinite(value).all()) for value in tensors):
        raise ValueError(
            "SparsePrior: there are values that are NaN or infinite, expected none; see the page "
            "on your data"
        )
