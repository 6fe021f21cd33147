# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents of a model's spike-and-slab sites: their state, and one sweep of equations (4)-(8) over
it. SSGL is one case; what one prior has other than the next are its two components.

The responsibilities of the two components, averaged, are one array in disguise. With ``slab`` the
running average of rho, that of the slab is ``slab`` and that of the spike ``1 + excess - slab``; of
SSGL, kappa1 is ``slab / v1`` and kappa0 is ``(1 + excess - slab) / v0``. The number ``excess``
carries what is left of the first kappas and decays by (1 - omega) a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.equations import (
    add_prior_gradient,
    beta_counts,
    beta_mode,
    scale_update,
    stochastic_approximation,
)
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.segments import Groups, Units
from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import Delta, Residuals, Sigma, SparseBlock, Structure
from pyro_aeb.priors.base import SpikeAndSlab
from pyro_aeb.priors.components import inclusion_logit, penalties


class SpikeAndSlabLatents(NamedTuple):
    """
    The latents' values. P sparse weights, S sigmas, L deltas; a leading axis of chains is kept.

    :param Tensor rho: inclusion probabilities, shape (..., P).
    :param Tensor slab: running average of rho, which stands for kappa0 and kappa1, shape (..., P).
    :param excess: what is left of the first kappas; see the module's docstring.
    :param Tensor sigma: scales, shape (..., S).
    :param Tensor delta: prior inclusion probabilities, shape (..., L).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor


class SpikeAndSlabRule:
    """
    The latents' arithmetic for one model's spike-and-slab sites.

    :param Structure structure: the model's structure.
    :raises ModelError: if the prior leaves (7) without a value, or the sites have priors of several
        kinds.
    """

    def __init__(self, structure: Structure) -> None:
        tensor = partial(torch.tensor, dtype=structure.dtype, device=structure.device)
        self._tensor = tensor
        self._blocks = blocks = structure.sparse
        sizes = tuple(block.size for block in blocks)
        self.size = sum(sizes)
        parameters = {
            name: _common([block.parameters[name] for block in blocks], sizes, tensor(0.0))
            for name in blocks[0].parameters
        }
        self.spike, self.slab = _prior(blocks).components(*parameters.values())
        self._bends = self.spike.bends or self.slab.bends
        self._units = Units.of([(block.size, block.group) for block in blocks])
        self._share = _common([1.0 / block.group for block in blocks], sizes, tensor(0.0))
        self.sigmas: tuple[Sigma, ...] = structure.sigmas
        self.deltas: tuple[Delta, ...] = structure.deltas
        self.sigma_groups = Groups(
            sizes, tuple(b.sigma for b in blocks), len(self.sigmas), structure.device
        )
        self.delta_groups = Groups(
            sizes, tuple(b.delta for b in blocks), len(self.deltas), structure.device
        )
        self._nu = _per_group([s.nu for s in self.sigmas], tensor)
        self._nu_lambda = _per_group([s.nu_lambda for s in self.sigmas], tensor)
        self._sigma_sizes = _per_group(self.sigma_groups.lengths(), tensor)
        gammas = [0.0] * len(self.deltas)
        for block in blocks:
            gammas[block.delta] += block.size // block.group
        self._delta_sizes = _per_group(gammas, tensor)
        self._delta_counts = beta_counts(
            self._delta_sizes,
            _per_group([d.a for d in self.deltas], tensor),
            _per_group([d.b for d in self.deltas], tensor),
        )
        self._sigma_learned = _Learned([s.site is not None for s in self.sigmas], structure.device)
        self._delta_learned = _Learned([d.site is not None for d in self.deltas], structure.device)
        narrow = torch.as_tensor(self.spike.variance < self.slab.variance)
        self._spike_is_narrow = narrow.to(structure.device)
        self._likelihoods = [
            (site, _per_group(own, tensor), tensor(own))
            for sigma in self.sigmas
            for own in [[float(other is sigma) for other in self.sigmas]]
            for site in sorted(sigma.likelihoods)
        ]
        for delta, size in zip(self.deltas, gammas, strict=True):
            if delta.site is not None and delta.a + delta.b + size - 2.0 <= 0.0:
                raise ModelError(
                    f"site {delta.site!r} ~ Beta({delta.a}, {delta.b}) with {size:.0f} "
                    f"{'weights' if self._units is None else 'weights or groups'} has "
                    "no mode for equation (7); use parameters of at least 1"
                )

    def init(
        self, initial: Mapping[str, Tensor], request: StochasticApproximation
    ) -> SpikeAndSlabLatents:
        """
        The latents before the first step.

        :param initial: first values of the learned sites (sigma squared and delta), by name.
        :param StochasticApproximation request: the first rho and kappa.
        """
        sigma = [self._first(s, initial) for s in self.sigmas]
        sigma = [v.sqrt() if s.site else v for v, s in zip(sigma, self.sigmas, strict=True)]
        delta = [self._first(d, initial) for d in self.deltas]
        rho = self._first_rho(request.initial_inclusion)
        # Two tensors: one in two places is compiled for, and anew when they part at the next step.
        slab, excess = rho.clone(), 0.0 * self.spike.strength
        if request.initial_penalty is not None:
            first = [request.initial_penalty / part.strength for part in (self.spike, self.slab)]
            slab = torch.zeros_like(rho) + first[1]
            excess = first[0] + first[1] - 1.0
        return SpikeAndSlabLatents(rho, slab, excess, torch.stack(sigma), torch.stack(delta))

    def _first_rho(self, given: float | Mapping[str, Tensor]) -> Tensor:
        if not isinstance(given, Mapping):
            return self._tensor(given).repeat(self.size)
        expected = {block.name: tuple(block.shape) for block in self._blocks}
        found = {name: tuple(rho.shape) for name, rho in given.items()}
        if found != expected:
            raise ModelError(
                f"initial_inclusion has tensors of shapes {found}, expected one for every sparse "
                f"site, of its shape: {expected}"
            )
        return torch.cat([given[name].reshape(-1) for name in expected]).to(self._tensor(0.0))

    def _first(self, group: Sigma | Delta, initial: Mapping[str, Tensor]) -> Tensor:
        if group.site is not None:
            return initial[group.site].detach().reshape(()).to(self._tensor(0.0))
        return self._tensor(group.fixed)

    def update(
        self,
        latents: SpikeAndSlabLatents,
        beta: Tensor,
        residuals: Mapping[str, Residuals],
        weight: float | Tensor,
    ) -> SpikeAndSlabLatents:
        """
        One sweep of (8) over rho, kappa, sigma and delta, in the order of Algorithm 1.

        :param SpikeAndSlabLatents latents: the latents before it.
        :param Tensor beta: the sparse slab after the step, shape (..., P).
        :param residuals: of the likelihoods with a learned sigma, before the step, by site.
        :param float weight: omega at this step.
        """
        rho, slab, excess, sigma, delta = latents
        prior = self.delta_groups.spread(torch.logit(delta))
        size = beta.abs()
        u = size / self.sigma_groups.spread(sigma)
        logit = self._inclusion_logit(u, prior)
        rho = stochastic_approximation(rho, logit.sigmoid_(), weight)
        slab = stochastic_approximation(slab, rho, weight)
        excess = (1.0 - weight) * excess
        if self._sigma_learned.any:
            new = self._scale(size, u, slab, excess, sigma, residuals)
            sigma = stochastic_approximation(sigma, self._sigma_learned.of(new, sigma), weight)
        if self._delta_learned.any:
            gammas = rho if self._units is None else rho * self._share
            new = beta_mode(self.delta_groups.sum(gammas), *self._delta_counts)
            delta = stochastic_approximation(delta, self._delta_learned.of(new, delta), weight)
        return SpikeAndSlabLatents(rho, slab, excess, sigma, delta)

    def _inclusion_logit(self, u: Tensor, prior: Tensor) -> Tensor:
        """Equation (4): of the gamma of every weight, or of the group that it is in."""
        if self._units is None:
            return inclusion_logit(u, prior, self.spike, self.slab)
        # The evidence adds up over a group, the prior counts once.
        return self._units.total(inclusion_logit(u, prior * self._share, self.spike, self.slab))

    def _scale(
        self,
        size: Tensor,
        u: Tensor,
        slab: Tensor,
        excess: float | Tensor,
        sigma: Tensor,
        residuals: Mapping[str, Residuals],
    ) -> Tensor:
        """sigma tilde of (6), shape (..., S), of weights of some sizes, which in sigmas are u."""
        linear, quadratic = penalties(slab, excess, self.spike, self.slab, u)
        if linear is None:
            absolute = torch.zeros_like(sigma)
        else:
            absolute = self.sigma_groups.sum(linear.mul_(size))
        if quadratic is None:
            square = torch.zeros_like(sigma)
        else:
            square = self.sigma_groups.sum(quadratic.mul_(size).mul_(size))
        count = self._sigma_sizes
        for site, own, mask in self._likelihoods:
            square = torch.addcmul(square, residuals[site].square.unsqueeze(-1), mask)
            data = residuals[site].data
            count = count + (data.unsqueeze(-1) if isinstance(data, Tensor) else data) * own
        return scale_update(absolute, square, count, self._nu, self._nu_lambda)

    def add_gradient(self, gradient: Tensor, latents: SpikeAndSlabLatents, beta: Tensor) -> None:
        """Adds the prior's part to the gradient (2) at the sparse slab, shape (..., P)."""
        sigma = self.sigma_groups.spread(latents.sigma)
        u = torch.div(beta, sigma).abs_() if self._bends else None
        both = penalties(latents.slab, latents.excess, self.spike, self.slab, u)
        add_prior_gradient(gradient, beta, *both, sigma)

    def potential(self, latents: SpikeAndSlabLatents, beta: Tensor) -> Tensor:
        r"""
        The prior's part of -Q, shape (...): the components' energies by their responsibilities, of
        SSGL :math:`\sum \kappa_0 |\beta| / \sigma + \kappa_1 \beta^2 / 2 \sigma^2`.
        """
        u = (beta / self.sigma_groups.spread(latents.sigma)).abs()
        spike = (1.0 + latents.excess - latents.slab) * self.spike.energy(u)
        return (spike + latents.slab * self.slab.energy(u)).sum(-1)

    def site_values(self, latents: SpikeAndSlabLatents) -> dict[str, Tensor]:
        """The learned sites' values, sigma squared and delta, each of its site's shape."""
        groups: tuple[Sigma | Delta, ...] = (*self.sigmas, *self.deltas)
        found = (*latents.sigma.square().unbind(-1), *latents.delta.unbind(-1))
        return {
            group.site: value.reshape(value.shape + group.shape) if group.shape else value
            for group, value in zip(groups, found, strict=True)
            if group.site is not None
        }

    def sparsity(self, latents: SpikeAndSlabLatents) -> Tensor:
        """
        The fraction of sparse weights that rather belong to the narrower of the two components: rho
        below 1/2 where that is the first (SSGL's Laplace), above where it is the second.
        """
        return (self.wide_probability(latents) < 0.5).to(latents.rho.dtype).mean(-1)

    def wide_probability(self, latents: SpikeAndSlabLatents) -> Tensor:
        """
        The probability that a weight belongs to the wider of the two components, shape (..., P):
        rho where that is the second (SSGL's Gaussian), 1 - rho where it is the first.
        """
        rho = latents.rho
        return torch.where(self._spike_is_narrow, rho, 1.0 - rho)

    def collapsed(self, latents: SpikeAndSlabLatents) -> list[str]:
        """
        Learned delta sites that have run into 0 or 1, under 1/1000 weight (or group) expected on a
        side that their prior does not hold open (a = 1 or b = 1).
        """
        expected = latents.delta * self._delta_sizes
        counts = torch.stack([expected, self._delta_sizes - expected], dim=-1)
        low = counts.reshape(-1, len(self.deltas), 2).amin(0).tolist()
        return [
            delta.site
            for delta, (slab, rest) in zip(self.deltas, low, strict=True)
            if delta.site and (slab < 1e-3 and delta.a <= 1.0 or rest < 1e-3 and delta.b <= 1.0)
        ]


def _prior(blocks: Sequence[SparseBlock]) -> type[SpikeAndSlab]:
    """
    The prior that all blocks have.

    :raises ModelError: if they have priors of several kinds.
    """
    kinds = {block.prior: block.name for block in blocks}
    if len(kinds) > 1:
        found = ", ".join(f"{name!r} ~ {kind.__name__}" for kind, name in kinds.items())
        raise ModelError(
            f"the sparse sites have spike-and-slab priors of several kinds ({found}), expected one "
            "kind for all, whose parameters may differ from site to site; choose one, or use "
            "adaptation=None, which samples them under their densities"
        )
    return blocks[0].prior


def _per_group(values: list[float], tensor: Callable[[list[float]], Tensor]) -> float | Tensor:
    """One value a group: a plain number where there is one group, which spares tiny operations."""
    return values[0] if len(values) == 1 else tensor(values)


class _Learned:
    """Which groups are learned; the others are fixed numbers."""

    def __init__(self, learned: list[bool], device: torch.device) -> None:
        self.any = any(learned)
        self._all = all(learned)
        self._mask = torch.tensor(learned, device=device)

    def of(self, new: Tensor, old: Tensor) -> Tensor:
        """The new values of learned groups and the old ones of fixed groups."""
        return new if self._all else torch.where(self._mask, new, old)


def _common(values: list[float | Tensor], sizes: tuple[int, ...], like: Tensor) -> float | Tensor:
    """One number where all blocks share it, else a tensor of shape (P,)."""
    first = values[0]
    if isinstance(first, float) and all(
        isinstance(value, float) and value == first for value in values
    ):
        return first
    parts = [
        torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1).expand(size)
        for value, size in zip(values, sizes, strict=True)
    ]
    return torch.cat(parts)
