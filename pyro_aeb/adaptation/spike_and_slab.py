# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents of a model's spike-and-slab sites: their values, and one sweep of equations (4) to (8).
SSGL is one of these priors; they differ in their two components.

The averaged responsibilities of both components are kept as one array. With ``slab`` the running
average of rho, that of the slab is ``slab`` and that of the spike ``1 + excess - slab``. For SSGL,
kappa1 is ``slab / v1`` and kappa0 is ``(1 + excess - slab) / v0``. The number ``excess`` is the
remainder of the first kappas, which decays by (1 - omega) a step.

With ``penalties="current"`` rho is that of (4) at the current weights wherever (5) takes it, and
``slab`` its value after the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

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
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.segments import FEW, Members, Segments, WeightGroups, find_segments
from pyro_aeb.adaptation.width import make_law
from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import (
    Delta,
    Residuals,
    Sigma,
    SparseBlock,
    Structure,
    Width,
)
from pyro_aeb.priors.base import SpikeAndSlab, log_mixture
from pyro_aeb.priors.components import (
    Component,
    Laplace,
    inclusion_logit,
    penalties,
    penalties_of,
)
from pyro_aeb.priors.scales import ScaleTerms


class SpikeAndSlabLatents(NamedTuple):
    """
    The values of the latents of P sparse weights, S sigmas and L deltas; chains are a leading axis.

    :param Tensor rho: inclusion probabilities, shape (..., P).
    :param Tensor slab: running average of rho, which stands for kappa0 and kappa1, shape (..., P).
    :param excess: the remainder of the first kappas; see the module's docstring.
    :param Tensor sigma: scales, shape (..., S).
    :param Tensor delta: prior inclusion probabilities, shape (..., L).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor

    @property
    def width(self) -> Tensor | None:
        """The width v0 of the spikes, None where it is fixed."""
        return None


class LatentsWithWidth(NamedTuple):
    """
    The values of :class:`SpikeAndSlabLatents` and, where it is learned, of the spikes' width.

    :param Tensor width: v0, shape (..., 1).
    :param Tensor curvature_of_width: running average of h of :mod:`pyro_aeb.adaptation.width`,
        shape (..., 1), 0 before the first.
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor
    width: Tensor
    curvature_of_width: Tensor


class GibbsLatents(NamedTuple):
    """
    The values of latents that are drawn, of P sparse weights, S sigmas and L deltas.
    Its first fields are those of :class:`SpikeAndSlabLatents`.

    :param Tensor rho: the probabilities that gammas were drawn with in the last scan, (..., P).
    :param Tensor slab: gamma, shape (..., P), 0 or 1.
    :param excess: 0.
    :param Tensor sigma: scales, shape (..., S).
    :param Tensor delta: prior inclusion probabilities, shape (..., L).
    :param Tensor curvature: minus the second derivatives of the log likelihood within every unit,
        where sigma is the scale of a likelihood in units of it; empty without flips.
    :param Tensor counts: of flips proposed and accepted, and of sigmas proposed and accepted, since
        the start, shape (..., 4).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor
    curvature: Tensor
    counts: Tensor

    @property
    def width(self) -> Tensor | None:
        """The width v0 of the spikes, None where it is fixed."""
        return None


class GibbsLatentsWithWidth(NamedTuple):
    """
    The values of :class:`GibbsLatents` and, where it is drawn, of the spikes' width.

    :param Tensor counts: also of steps of v0 proposed and accepted, shape (..., 6).
    :param Tensor width: v0, shape (..., 1).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor
    curvature: Tensor
    counts: Tensor
    width: Tensor


AveragedLatents = SpikeAndSlabLatents | LatentsWithWidth
DrawnLatents = GibbsLatents | GibbsLatentsWithWidth
AnyLatents = AveragedLatents | DrawnLatents


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
            name: _common([block.parameters[name] for block in blocks], sizes, tensor(0.0))
            for name in blocks[0].parameters
        }
        self.spike, self.slab = _prior(blocks).components(*parameters.values())
        self._take_width(structure.width)
        self._bends = self.spike.bends or self.slab.bends
        self._groups = WeightGroups.of([(block.size, block.group) for block in blocks])
        self.share = _common([1.0 / block.group for block in blocks], sizes, tensor(0.0))
        self.sigmas: tuple[Sigma, ...] = structure.sigmas
        self.deltas: tuple[Delta, ...] = structure.deltas
        sigmas, deltas = (
            find_segments([getattr(b, n) for b in blocks], sizes, len(of), structure.device)
            for n, of in (("sigma", self.sigmas), ("delta", self.deltas))
        )
        self.spread_sigma, self.sum_by_sigma = _maps(sigmas)
        self.spread_delta, self.sum_by_delta = _maps(deltas)
        self.nu = _per_parameter([s.nu for s in self.sigmas], tensor)
        self.nu_lambda = _per_parameter([s.nu_lambda for s in self.sigmas], tensor)
        self.terms = _terms(self.sigmas, tensor)
        self.are_variances = tensor([s.terms is None for s in self.sigmas]).bool()
        self.has_likelihood = tensor([bool(s.likelihoods) for s in self.sigmas]).bool()
        self._sigma_sizes = _per_parameter(sigmas.lengths(), tensor)
        gammas = self._delta_sizes = _count_gammas(blocks, len(self.deltas))
        self.delta_counts = beta_counts(
            _per_parameter(gammas, tensor),
            _per_parameter([d.a for d in self.deltas], tensor),
            _per_parameter([d.b for d in self.deltas], tensor),
        )
        self.sigma_learned = _Learned([s.site is not None for s in self.sigmas], structure.device)
        self.delta_learned = _Learned([d.site is not None for d in self.deltas], structure.device)
        narrow = torch.as_tensor(self.spike.variance < self.slab.variance)
        # One bool for all weights saves an operation.
        self.spike_is_narrow = narrow.to(structure.device) if narrow.dim() else bool(narrow)
        self._wide = self._one_wide_component(narrow) if from_slab else None
        self.residuals = _ResidualSums(self.sigmas, structure.sigmas_of_data, tensor)
        numbers: tuple[Sigma | Delta, ...] = (*self.sigmas, *self.deltas)
        self._are_single = all(number.shape.numel() == 1 for number in numbers)
        self._check_modes(gammas)

    def _take_width(self, width: Width | None) -> None:
        """Take the width of the spikes, None where it is fixed."""
        self.width, self.width_law = width, None
        if width is not None:
            self.width_law = make_law(width, self.slab)
            self.spike = Laplace(self.width_law.limit)  # until the latents have another width

    def _one_wide_component(self, spike_is_narrow: Tensor) -> Component:
        """
        Return the wider component.

        :raises ModelError: if it is the slab for some weights and the spike for others.
        """
        if bool(spike_is_narrow.all()):
            return self.slab
        if not bool(spike_is_narrow.any()):
            return self.spike
        raise ModelError(
            "the component of gamma = 0 is the narrower one for some weights and the wider one for "
            "others, expected one of both for all with sigma_from='slab', which leaves the "
            "narrower one out; use sigma_from='all', or parameters of the prior in one order"
        )

    def _check_modes(self, sizes: Sequence[float]) -> None:
        for delta, size in zip(self.deltas, sizes, strict=True):
            if delta.site is not None and delta.a + delta.b + size - 2.0 <= 0.0:
                raise ModelError(
                    f"site {delta.site!r} ~ Beta({delta.a}, {delta.b}) with {size:.0f} "
                    f"{'weights' if self._groups is None else 'weights or groups'} has "
                    "no mode for equation (7); use parameters of at least 1"
                )

    def init(
        self, initial: Mapping[str, Tensor], options: StochasticApproximation
    ) -> AveragedLatents:
        """
        Return the latents before the first step.

        :param initial: first values of the learned sites (sigma squared and delta), by name.
        """
        sigma, delta = self.first_values(initial)
        width = self.first_width(initial)
        rho = self._first_rho(options.initial_inclusion)
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
        return LatentsWithWidth(rho, slab, excess, sigma, delta, width, zero)

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
        sigma = [self._first(s, initial) for s in self.sigmas]
        sigma = [s.of_site(v) if s.site else v for v, s in zip(sigma, self.sigmas, strict=True)]
        delta = [self._first(d, initial) for d in self.deltas]
        return torch.stack(sigma), torch.stack(delta)

    def _first_rho(self, given: float | Mapping[str, Tensor]) -> Tensor:
        if not isinstance(given, Mapping):
            return self._tensor(given).repeat(self.size)
        expected = {block.name: tuple(block.shape) for block in self.blocks}
        found = {name: tuple(rho.shape) for name, rho in given.items()}
        if found != expected:
            raise ModelError(
                f"initial_inclusion has tensors of shapes {found}, expected one for every sparse "
                f"site, of its shape: {expected}"
            )
        return torch.cat([given[name].reshape(-1) for name in expected]).to(self._tensor(0.0))

    def _first(self, group: Sigma | Delta, initial: Mapping[str, Tensor]) -> Tensor:
        if group.site is not None:
            return initial[group.site].detach().reshape(-1)[group.index].to(self._tensor(0.0))
        return self._tensor(group.fixed)

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
            return _gather_sites(groups, found)
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


def _prior(blocks: Sequence[SparseBlock]) -> type[SpikeAndSlab]:
    """
    Return the kind of prior of all blocks.

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


def _maps(
    segments: Segments | Members,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return how values spread over weights, and how weights are summed; nothing to do for one."""
    if segments.count > 1:
        return segments.spread, segments.sum
    return lambda values: values, lambda values: values.sum(-1, keepdim=True)


def _per_parameter(values: list[float], tensor: Callable[[list[float]], Tensor]) -> float | Tensor:
    """Return one value a parameter: a plain number where there is one, which saves operations."""
    return values[0] if len(values) == 1 else tensor(values)


def _count_gammas(blocks: Sequence[SparseBlock], count: int) -> list[float]:
    """Return the number of gammas of each delta."""
    gammas = [0.0] * count
    for block in blocks:
        if isinstance(block.delta, int):
            gammas[block.delta] += block.size // block.group
            continue
        for delta, size in enumerate(torch.bincount(block.delta.flatten()).tolist()):
            gammas[delta] += size // block.group
    return gammas


def _gather_sites(numbers: Sequence[Sigma | Delta], values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the values of the sites of some numbers, each of its site's shape."""
    parts: dict[str, list[Tensor]] = {}
    for number, value in zip(numbers, values, strict=True):
        if number.site is not None:
            parts.setdefault(number.site, []).append(value)
    shapes = {number.site: number.shape for number in numbers}
    return {
        site: torch.stack(own, -1).reshape(own[0].shape + shapes[site])
        for site, own in parts.items()
    }


def _terms(sigmas: Sequence[Sigma], tensor: Callable[[list[float]], Tensor]) -> ScaleTerms | None:
    """
    Return the terms of the sigmas' priors, one number each or one a sigma; None where all priors
    are InverseGamma, which (6) solves in closed form.
    """
    if all(sigma.terms is None for sigma in sigmas):
        return None
    # InverseGamma: log p(sigma^2) = -(nu + 2) log(sigma) - nu lambda / 2 sigma^2, up to a constant
    terms = [sigma.terms or ScaleTerms(-(sigma.nu + 2.0)) for sigma in sigmas]
    columns: dict[str, Any] = {}
    for name, absent in zip(ScaleTerms._fields, (0.0, 0.0, 0.0, math.inf), strict=True):
        values = [getattr(each, name) for each in terms]
        if any(value is not None for value in values):
            numbers = [absent if value is None else value for value in values]
            columns[name] = _per_parameter(numbers, tensor)
    return ScaleTerms(**columns)


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
            self._masks.append((_per_parameter(mask, tensor), tensor(mask)))

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


def _common(values: list[float | Tensor], sizes: tuple[int, ...], like: Tensor) -> float | Tensor:
    """Return one number where all blocks share it, else a tensor of shape (P,)."""
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
