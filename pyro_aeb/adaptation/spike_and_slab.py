# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The spike-and-slab prior of a model's sparse weights: its gradient, and one sweep of equations (4)
to (8) over its latents (:mod:`pyro_aeb.adaptation.latent_values`). SSGL is one of these priors;
they differ in their two components.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.equations import (
    add_prior_gradient,
    beta_counts,
    beta_mode,
    scale_mode,
    scale_update,
    stochastic_approximation,
)
from pyro_aeb.adaptation.latent_values import (
    AnyLatents,
    AveragedLatents,
    LatentsWithWidth,
    SpikeAndSlabLatents,
)
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.parameters import (
    check_modes,
    count_gammas,
    first_inclusion,
    first_number,
    gather_sites,
    join_blocks,
    per_parameter,
    prior_of,
    scale_terms_of,
    wider_component,
)
from pyro_aeb.adaptation.segments import FEW, Members, Segments, WeightGroups, find_segments
from pyro_aeb.adaptation.width import make_law
from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import Delta, Residuals, Sigma, Structure, Width
from pyro_aeb.priors.base import log_mixture
from pyro_aeb.priors.components import (
    Component,
    Laplace,
    inclusion_logit,
    penalties,
    penalties_of,
)


class SpikeAndSlabRule:
    """
    The spike-and-slab prior of one model's sparse weights: its gradient and its latents' updates.

    :param bool marginal: whether gamma is summed out, so that penalties are those of the current
        weights.
    :param bool from_slab: whether (6) leaves the narrower component out.
    :raises ModelError: if (7) has no solution under the prior, or the sites have priors of several
        kinds.
    """

    def __init__(
        self, structure: Structure, marginal: bool = False, from_slab: bool = False
    ) -> None:
        self._marginal = marginal
        tensor = partial(torch.tensor, dtype=structure.dtype, device=structure.device)
        self._tensor = tensor
        self.blocks = blocks = structure.sparse
        sizes = tuple(block.size for block in blocks)
        self.size = sum(sizes)
        parameters = {
            name: join_blocks([block.parameters[name] for block in blocks], sizes, tensor(0.0))
            for name in blocks[0].parameters
        }
        self.spike, self.slab = prior_of(blocks).components(*parameters.values())
        self._take_width(structure.width)
        self._bends = self.spike.bends or self.slab.bends
        self._groups = WeightGroups.of([(block.size, block.group) for block in blocks])
        self.share = join_blocks([1.0 / block.group for block in blocks], sizes, tensor(0.0))
        self.sigmas: tuple[Sigma, ...] = structure.sigmas
        self.deltas: tuple[Delta, ...] = structure.deltas
        sigmas, deltas = (
            find_segments([getattr(b, n) for b in blocks], sizes, len(of), structure.device)
            for n, of in (("sigma", self.sigmas), ("delta", self.deltas))
        )
        self.spread_sigma, self.sum_by_sigma = _maps(sigmas)
        self.spread_delta, self.sum_by_delta = _maps(deltas)
        self.nu = per_parameter([s.nu for s in self.sigmas], tensor)
        self.nu_lambda = per_parameter([s.nu_lambda for s in self.sigmas], tensor)
        self.terms = scale_terms_of(self.sigmas, tensor)
        self.are_variances = tensor([s.terms is None for s in self.sigmas]).bool()
        self.has_likelihood = tensor([bool(s.likelihoods) for s in self.sigmas]).bool()
        self._sigma_sizes = per_parameter(sigmas.lengths(), tensor)
        gammas = self._delta_sizes = count_gammas(blocks, len(self.deltas))
        self.delta_counts = beta_counts(
            per_parameter(gammas, tensor),
            per_parameter([d.a for d in self.deltas], tensor),
            per_parameter([d.b for d in self.deltas], tensor),
        )
        self.sigma_learned = _Learned([s.site is not None for s in self.sigmas], structure.device)
        self.delta_learned = _Learned([d.site is not None for d in self.deltas], structure.device)
        narrow = torch.as_tensor(self.spike.variance < self.slab.variance)
        # One bool for all weights saves an operation.
        self.spike_is_narrow = narrow.to(structure.device) if narrow.dim() else bool(narrow)
        self._wide = wider_component(self.spike, self.slab, narrow) if from_slab else None
        self.residuals = _ResidualSums(self.sigmas, structure.sigmas_of_data, tensor)
        numbers: tuple[Sigma | Delta, ...] = (*self.sigmas, *self.deltas)
        self._are_single = all(number.shape.numel() == 1 for number in numbers)
        check_modes(self.deltas, gammas, "weights" if self._groups is None else "weights or groups")

    def _take_width(self, width: Width | None) -> None:
        """Take the width of the spikes, None where it is fixed."""
        self.width, self.width_law = width, None
        if width is not None:
            self.width_law = make_law(width, self.slab)
            self.spike = Laplace(self.width_law.limit)  # until the latents have another width

    def init(
        self, initial: Mapping[str, Tensor], options: StochasticApproximation
    ) -> AveragedLatents:
        """
        Return the latents before the first step.

        :param initial: first values of the learned sites (sigma squared and delta), by name.
        """
        sigma, delta = self.first_values(initial)
        width = self.first_width(initial)
        rho = first_inclusion(options.initial_inclusion, self.blocks, self._tensor(0.0))
        # A clone: code is compiled for one tensor in two places, and anew once they differ.
        slab, excess = rho.clone(), 0.0 * self.spike.strength
        if options.initial_penalty is not None:
            if self.width is not None:
                raise ModelError(
                    f"initial_penalty is {options.initial_penalty} and the width of the spikes, "
                    f"site {self.width.site!r}, is learned, expected None: penalties start from "
                    "equation (5)"
                )
            first = [options.initial_penalty / part.strength for part in (self.spike, self.slab)]
            slab = torch.zeros_like(rho) + first[1]
            excess = first[0] + first[1] - 1.0
        if width is None:
            return SpikeAndSlabLatents(rho, slab, excess, sigma, delta)
        zero = torch.zeros_like(width)
        return LatentsWithWidth(rho, slab, excess, sigma, delta, width, zero, zero)

    def first_width(self, initial: Mapping[str, Tensor]) -> Tensor | None:
        """Return the first v0, no more than its limit; None where it is fixed."""
        if self.width_law is None or self.width is None:
            return None
        value = initial[self.width.site].detach().reshape(1).to(self._tensor(0.0))
        return value.clamp(max=self.width_law.limit)

    def spike_of(self, latents: AnyLatents) -> Component:
        """Return the spike, of the width v0 that the latents have where it is learned."""
        return self.spike if latents.width is None else Laplace(latents.width)

    def first_values(self, initial: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the first sigmas and deltas, from the values of their sites, by name."""
        sigma = [first_number(s, initial, self._tensor(0.0)) for s in self.sigmas]
        sigma = [s.of_site(v) if s.site else v for v, s in zip(sigma, self.sigmas, strict=True)]
        delta = [first_number(d, initial, self._tensor(0.0)) for d in self.deltas]
        return torch.stack(sigma), torch.stack(delta)

    def update(
        self,
        latents: AveragedLatents,
        beta: Tensor,
        residuals: Mapping[str, Residuals],
        omega: float | Tensor,
        inverse_temperature: float | Tensor = 1.0,
    ) -> AveragedLatents:
        """
        Return the latents after one sweep over rho, kappa, sigma and delta, in the paper's order.

        :param Tensor beta: the sparse slab after the step, shape (..., P).
        :param residuals: of the likelihoods with a learned sigma, before the step, by site.
        :param omega: weight of (8).
        :param inverse_temperature: tau, at which the weights were drawn.
        """
        rho, slab, excess, sigma, delta, *others = latents
        width = None if self.width is None else latents.width
        size = beta.abs()
        u = size / self.spread_sigma(sigma)
        current = self.inclusion(u, delta, width)  # (4)
        rho = stochastic_approximation(rho, current, omega)
        # (5), and with it kappa
        slab = current if self._marginal else stochastic_approximation(slab, rho, omega)
        excess = (1.0 - omega) * excess
        if self.sigma_learned.any:
            if self._wide is None:
                sums = self._sums(size, u, slab, excess, width)
            else:
                share = current if self._marginal else rho
                sums = self._slab_sums(size, u, share, inverse_temperature)
            new = self._scale(*sums, sigma, residuals)  # (6)
            sigma = stochastic_approximation(sigma, self.sigma_learned.select(new, sigma), omega)
        if self.delta_learned.any:
            gammas = rho if self._groups is None else rho * self.share
            new = beta_mode(self.sum_by_delta(gammas), *self.delta_counts)  # (7)
            delta = stochastic_approximation(delta, self.delta_learned.select(new, delta), omega)
        if width is None:
            return SpikeAndSlabLatents(rho, slab, excess, sigma, delta)
        return LatentsWithWidth(rho, slab, excess, sigma, delta, *others)

    def inclusion(self, u: Tensor, delta: Tensor, width: Tensor | None = None) -> Tensor:
        """Return rho tilde of (4), of the gamma of every weight, or of the group that it is in."""
        prior = self.spread_delta(torch.logit(delta))
        spike = self.spike if width is None else Laplace(width)
        if self._groups is None:
            return inclusion_logit(u, prior, spike, self.slab).sigmoid_()
        # The evidence adds up over a group, the prior counts once.
        logit = inclusion_logit(u, prior * self.share, spike, self.slab)
        return self._groups.total(logit).sigmoid()

    def _sums(
        self,
        size: Tensor,
        u: Tensor,
        slab: Tensor,
        excess: float | Tensor,
        width: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, float | Tensor]:
        """Return B, J and p of (6), each of shape (..., S), for weights of some sizes, u sigmas."""
        spike = self.spike if width is None else Laplace(width)
        linear, quadratic = penalties(slab, excess, spike, self.slab, u)
        return *self.weigh(linear, quadratic, size), self._sigma_sizes

    def _slab_sums(
        self, size: Tensor, u: Tensor, rho: Tensor, inverse_temperature: float | Tensor
    ) -> tuple[Tensor, Tensor, float | Tensor]:
        r"""
        Return B, J and p of (6) without the narrower component:
        p is then :math:`\sum \rho / \tau`, as a component to the power of tau has a normalising
        constant of the power :math:`1 / \tau`.
        """
        assert self._wide is not None
        wide = rho if self._wide is self.slab else 1.0 - rho
        sums = self.weigh(*penalties_of(wide, self._wide, u), size)
        return *sums, self.sum_by_sigma(wide) / inverse_temperature

    def weigh(
        self, linear: Tensor | None, quadratic: Tensor | None, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return B and J of (6), the sums of both penalties by sigma; the penalties are changed."""
        if linear is None:
            absolute = size.new_zeros(*size.shape[:-1], len(self.sigmas))
        else:
            absolute = self.sum_by_sigma(linear.mul_(size))
        if quadratic is None:
            square = torch.zeros_like(absolute)
        else:
            square = self.sum_by_sigma(quadratic.mul_(size).mul_(size))
        return absolute, square

    def _scale(
        self,
        absolute: Tensor,
        square: Tensor,
        count: float | Tensor,
        sigma: Tensor,
        residuals: Mapping[str, Residuals],
    ) -> Tensor:
        """Return sigma tilde of (6), shape (..., S), from B, J and p."""
        square, count = self.residuals.add(square, count, residuals)
        if self.terms is not None:
            return scale_mode(absolute, square + self.nu_lambda, count, self.terms, sigma)
        return scale_update(absolute, square, count, self.nu, self.nu_lambda)

    def add_gradient(self, gradient: Tensor, latents: AnyLatents, beta: Tensor) -> None:
        """Add the prior's part of (2) to the gradient at the sparse weights, shape (..., P)."""
        sigma, slab = self.spread_sigma(latents.sigma), latents.slab
        u = torch.div(beta, sigma).abs_() if self._bends or self._marginal else None
        width = None if self.width is None else latents.width
        if self._marginal and u is not None:
            slab = self.inclusion(u, latents.delta, width)
        spike = self.spike if width is None else Laplace(width)
        both = penalties(slab, latents.excess, spike, self.slab, u)
        add_prior_gradient(gradient, beta, *both, sigma)

    def potential(self, latents: AnyLatents, beta: Tensor) -> Tensor:
        r"""
        Return the prior's part of -Q, shape (...): the components' energies, weighted by their
        responsibilities. For SSGL it is
        :math:`\sum \kappa_0 |\beta| / \sigma + \kappa_1 \beta^2 / 2 \sigma^2`. Where gamma is
        summed out it is minus the log density (1), in units of sigma.
        """
        u = (beta / self.spread_sigma(latents.sigma)).abs()
        part = self.spike if self.width is None else self.spike_of(latents)
        if self._marginal:
            spike, slab = part.log_density(u), self.slab.log_density(u)
            if self._groups is not None:
                spike, slab = self._groups.total(spike), self._groups.total(slab)
            mixed = log_mixture(spike, slab, self.spread_delta(latents.delta))
            return -(mixed * self.share).sum(-1)
        spike = (1.0 + latents.excess - latents.slab) * part.energy(u)
        return (spike + latents.slab * self.slab.energy(u)).sum(-1)

    def site_values(self, latents: AnyLatents) -> dict[str, Tensor]:
        """Return the learned sites' values, sigma or its square and delta, of the sites' shapes."""
        groups: tuple[Sigma | Delta, ...] = (*self.sigmas, *self.deltas)
        sigma = latents.sigma.square()
        if self.terms is not None:
            sigma = torch.where(self.are_variances, sigma, latents.sigma)
        found = (*sigma.unbind(-1), *latents.delta.unbind(-1))
        if not self._are_single:
            return gather_sites(groups, found)
        return {
            group.site: value.reshape(value.shape + group.shape) if group.shape else value
            for group, value in zip(groups, found, strict=True)
            if group.site is not None
        }

    def width_value(self, latents: AnyLatents) -> dict[str, Tensor]:
        """Return the value of the site of v0, which is learned, of the site's shape."""
        assert self.width is not None and latents.width is not None
        shape = (*latents.width.shape[:-1], *self.width.shape)
        return {self.width.site: latents.width.reshape(shape)}

    def sparsity(self, latents: AnyLatents) -> Tensor:
        """
        Return the share of sparse weights that more probably belong to the narrower component: rho
        below 1/2 where that is the spike (SSGL's Laplace), above where it is the slab.
        """
        return (self.wide_probability(latents) < 0.5).mean(-1, dtype=latents.rho.dtype)

    def wide_probability(self, latents: AnyLatents) -> Tensor:
        """
        Return the probability that a weight belongs to the wider component, shape (..., P): rho
        where that is the slab (SSGL's Gaussian), 1 - rho where it is the spike.
        """
        rho, narrow = latents.rho, self.spike_is_narrow
        if isinstance(narrow, bool):
            return rho if narrow else 1.0 - rho
        return torch.where(narrow, rho, 1.0 - rho)

    def collapse_bounds(self) -> dict[str, tuple[float, float]]:
        """Return for every learned delta site two numbers, beyond which it has collapsed."""
        return {
            delta.site: (
                1e-3 / size if delta.a <= 1.0 else -1.0,
                1.0 - 1e-3 / size if delta.b <= 1.0 else 2.0,
            )
            for delta, size in zip(self.deltas, self._delta_sizes, strict=True)
            if delta.site
        }

    def collapsed(self, latents: AveragedLatents) -> list[str]:
        """
        Return the learned delta sites that have reached 0 or 1: less than 1/1000 weight (or group)
        is expected on a side that the prior does not hold open (a = 1 or b = 1).
        """
        chains = latents.delta.reshape(-1, len(self.deltas)).tolist()
        sites = [
            delta.site
            for delta, size, *found in zip(self.deltas, self._delta_sizes, *chains, strict=True)
            if delta.site
            and (
                min(found) * size < 1e-3
                and delta.a <= 1.0
                or (1.0 - max(found)) * size < 1e-3
                and delta.b <= 1.0
            )
        ]
        return list(dict.fromkeys(sites))


def _maps(
    segments: Segments | Members,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return how values spread over weights, and how weights are summed; nothing to do for one."""
    if segments.count > 1:
        return segments.spread, segments.sum
    return lambda values: values, lambda values: values.sum(-1, keepdim=True)


class _ResidualSums:
    """
    Sums over the likelihoods of each sigma: of squared residuals, and of numbers of data.

    :param several: the indices of the sigmas of each likelihood that has several.
    """

    def __init__(
        self,
        sigmas: Sequence[Sigma],
        several: Mapping[str, Tensor],
        tensor: Callable[..., Tensor],
    ) -> None:
        own = [sorted(sigma.likelihoods - several.keys()) for sigma in sigmas]
        self._sites = [site for sites in own for site in sites]
        sizes = {i: len(sites) for i, sites in enumerate(own) if sites}
        self._several = {
            site: find_segments([index], [index.numel()], len(sigmas), index.device)
            for site, index in several.items()
        }
        self._segments = None
        self._masks: list[tuple[float | Tensor, Tensor]] = []
        if len(sizes) > FEW:
            parts = tuple(sizes.values()), tuple(sizes), len(sigmas), tensor(0.0).device
            self._segments = Segments(*parts)
            return
        for i in (i for i, size in sizes.items() for _ in range(size)):
            mask = [float(other == i) for other in range(len(sigmas))]
            self._masks.append((per_parameter(mask, tensor), tensor(mask)))

    def add(
        self, square: Tensor, count: float | Tensor, residuals: Mapping[str, Residuals]
    ) -> tuple[Tensor, float | Tensor]:
        """Add the sums of all sigmas to ``square``, shape (..., S), and to ``count``."""
        for site, segments in self._several.items():
            data: Any = residuals[site].data
            square = square + segments.sum(residuals[site].square)
            count = count + segments.sum(data)
        found = [residuals[site] for site in self._sites]
        if self._segments is not None:
            squares = torch.stack([residual.square for residual in found], dim=-1)
            data = [residual.data for residual in found]
            if any(isinstance(number, Tensor) for number in data):
                data = torch.stack([torch.zeros_like(r.square) + r.data for r in found], dim=-1)
            data = torch.as_tensor(data, dtype=squares.dtype, device=squares.device)
            return square + self._segments.sum(squares), count + self._segments.sum(data)
        for residual, (own, mask) in zip(found, self._masks, strict=True):
            square = torch.addcmul(square, residual.square.unsqueeze(-1), mask)
            data = residual.data
            count = count + (data.unsqueeze(-1) if isinstance(data, Tensor) else data) * own
        return square, count


class _Learned:
    """The parameters that are learned; the others are fixed numbers."""

    def __init__(self, learned: list[bool], device: torch.device) -> None:
        self.any = any(learned)
        self._all = all(learned)
        self.mask = torch.tensor(learned, device=device)

    def select(self, new: Tensor, old: Tensor) -> Tensor:
        """Return new values of learned parameters and old ones of fixed parameters."""
        return new if self._all else torch.where(self.mask, new, old)
