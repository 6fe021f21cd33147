# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Groups of weights that share one gamma."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_aeb.priors.base import SpikeAndSlab, log_mixture
from pyro_aeb.priors.components import log


class Group(TorchDistribution):
    """
    A spike-and-slab distribution with one ``gamma`` per group of weights, such as those of a filter
    or a neuron. Given ``gamma``, weights are independent::

        gamma                          ~ Bernoulli(delta)                     of every group
        value[..., j] / sigma | gamma  ~ spike if gamma = 0, slab if gamma = 1

    The last ``dims`` dimensions of ``base_dist`` are a group, its other dimensions the batch::

        filters = Group(SSGL(0.1, 10.0, delta, sigma).expand([64, 16, 3, 3]), dims=3)    # 64 groups
        weight = pyro.sample("weight", filters.to_event(1))

    It extends any prior of this package to groups; for another group spike-and-slab see Xu, Ghosh
    (2015), "Bayesian variable selection and estimation for group lasso", Bayesian Analysis 10.

    :param SpikeAndSlab base_dist: the prior of single weights.
    :param int dims: the number of dimensions of a group, at least 1.
    :raises TypeError: if ``base_dist`` is no spike-and-slab distribution.
    :raises ValueError: if it has fewer dimensions, or a delta differs within a group.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self, base_dist: SpikeAndSlab, dims: int = 1, *, validate_args: bool | None = None
    ) -> None:
        if not isinstance(base_dist, SpikeAndSlab):
            raise TypeError(
                f"Group expects a spike-and-slab distribution such as SSGL, without to_event, but "
                f"found {type(base_dist).__name__}"
            )
        shape = base_dist.batch_shape
        if not 1 <= dims <= len(shape):
            raise ValueError(
                f"Group expects dims from 1 to the {len(shape)} dimensions of {base_dist}, but "
                f"found {dims}; expand the distribution to the shape of the weights first"
            )
        delta = base_dist.given["delta"]
        if isinstance(delta, Tensor) and any(n != 1 for n in delta.shape[-dims:]):
            raise ValueError(
                f"Group expects one delta a group, but found delta of shape {tuple(delta.shape)} "
                f"for groups of shape {tuple(shape[-dims:])}; give it {dims} last dimensions of "
                "length 1"
            )
        self.base_dist = base_dist
        self.dims = dims
        super().__init__(shape[:-dims], shape[-dims:], validate_args=False)
        self._validate_args = base_dist._validate_args if validate_args is None else validate_args

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, self.dims)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Group:
        new = self._get_checked_instance(Group, _instance)
        batch_shape = torch.Size(batch_shape)
        new.base_dist = self.base_dist.expand(batch_shape + self.event_shape)
        new.dims = self.dims
        super(Group, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    @property
    def delta(self) -> Tensor:
        """Probability of a group's slab, shape ``batch_shape``."""
        return self.base_dist.delta[(..., *(0,) * self.dims)]

    def _sum(self, values: Tensor) -> Tensor:
        return values.flatten(-self.dims).sum(-1)

    def _log_densities(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log densities of spike and slab of every group, in units of sigma."""
        spike, slab = self.base_dist.log_densities(value)
        return self._sum(spike), self._sum(slab)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of every group, ``gamma`` summed out."""
        spike, slab = self._log_densities(value)
        sigma = log(self.base_dist.sigma)
        assert isinstance(sigma, Tensor)
        return log_mixture(spike, slab, self.delta) - self._sum(sigma)

    def inclusion(self, value: Tensor) -> Tensor:
        """
        Return the probability of ``gamma = 1``, the slab, given a group's values: equation (4).

        :param Tensor value: weights, of shape ``(..., *event_shape)``.
        """
        spike, slab = self._log_densities(value)
        return torch.sigmoid(torch.logit(self.delta) + (slab - spike))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        spike, slab = self.base_dist.sample_components(shape)
        delta = self.delta
        included = torch.rand(shape[: -self.dims], dtype=delta.dtype, device=delta.device) < delta
        included = included[(..., *(None,) * self.dims)]
        return self.base_dist.sigma * torch.where(included, slab, spike)

    def __repr__(self) -> str:
        return f"Group({self.base_dist}, dims={self.dims})"


def group_size(fn: Any) -> int:
    """Return the number of weights that share a gamma in a distribution: 1 without groups."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn.event_shape.numel() if isinstance(fn, Group) else 1
