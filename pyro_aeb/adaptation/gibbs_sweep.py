# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sample the latents of spike-and-slab priors, in scans between the steps of the weights.

Given gamma, sigma and delta, a transition moves the weights for some steps; then a scan draws all
three from their conditional laws: gammas by collapsed flips (:mod:`pyro_aeb.adaptation.flips`),
delta from its Beta, sigma with the narrow weights in its units
(:mod:`pyro_aeb.adaptation.sigma_draw`), and the width of the spikes where it is learned
(:mod:`pyro_aeb.adaptation.width`). A Student's t is a mixture of Normals, whose variances are
drawn first and forgotten after the scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pyro_aeb.adaptation.conditionals import Conditional, GaussianConditional, LaplaceConditional
from pyro_aeb.adaptation.draws import Random, draw_beta, draw_mixing
from pyro_aeb.adaptation.flips import UnitLaws, flip
from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.adaptation.latent_values import DrawnLatents, GibbsLatents, GibbsLatentsWithWidth
from pyro_aeb.adaptation.sigma_draw import (
    Evaluated,
    WideWeights,
    draw_sigma_at_fixed_weights,
    move_sigma,
)
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.adaptation.sweep import Adaptation, Latents, SufficientStatistics, WholeData
from pyro_aeb.adaptation.units import Blocks, Units, make_positive
from pyro_aeb.adaptation.width import TRIES, accept_sigma, draw_width, scale_spikes
from pyro_aeb.errors import ModelError
from pyro_aeb.model.structure import Structure
from pyro_aeb.priors.components import Component, Gaussian, Laplace, Student, penalties

LARGEST_GROUP = 64
"""The most weights of a group with flips, whose curvature is a matrix for every group."""


class GibbsAdaptation(Adaptation):
    """
    Gibbs sampling of the latents.

    :raises ModelError: if the prior is one that it cannot draw.
    """

    is_sampled: ClassVar[bool] = True

    def __init__(self, structure: Structure, options: Gibbs) -> None:
        self._structure = structure
        self._options = options
        rule = None
        if structure.sparse:
            rule = SpikeAndSlabRule(structure, marginal=not options.flips)
            self._units = Units([(block.size, block.group) for block in structure.sparse])
            self._check(rule)
        super().__init__(rule)

    def _check(self, rule: SpikeAndSlabRule) -> None:
        for part in (rule.spike, rule.slab):
            if type(part) not in (Laplace, Gaussian, Student):
                raise ModelError(
                    f"the prior has a {type(part).__name__} component, and Gibbs draws weights "
                    "under Laplace, Gaussian and Student components; use StochasticApproximation"
                )
        if self._options.flips and self._units.largest > LARGEST_GROUP:
            raise ModelError(
                f"the largest group has {self._units.largest} weights, expected at most "
                f"{LARGEST_GROUP} for flips, which draw all weights of a group at once; use "
                "Gibbs(flips=False), or smaller groups"
            )

    def init(self, values: Mapping[str, Tensor]) -> Latents | None:
        rule = self.spike_and_slab
        if rule is None:
            return None
        sigma, delta = rule.first_values(values)
        beta = torch.cat([values[block.name].detach().reshape(-1) for block in rule.blocks])
        width = rule.first_width(values)
        rho = rule.inclusion((beta.to(sigma) / rule.spread_sigma(sigma)).abs(), delta, width)
        size = sum(columns.numel() for columns in self._units.columns())
        curvature = sigma.new_zeros(size if self._options.flips else 0)
        gamma = (rho > 0.5).to(rho)
        excess = 0.0 * rule.spike.strength
        counts = sigma.new_zeros(4 if width is None else 6)
        first = rho, gamma, excess, sigma, delta, curvature, counts
        if width is None:
            return Latents(GibbsLatents(*first), {})
        return Latents(GibbsLatentsWithWidth(*first, width, torch.zeros_like(width)), {})

    def update(
        self,
        latents: Latents | None,
        position: Tensor,
        statistics: SufficientStatistics,
        omega: float | Tensor,
        inverse_temperature: float | Tensor = 1.0,
    ) -> Latents | None:
        """Return the latents as they are: they move in scans."""
        return latents

    def steps_to_scan(self, step: int) -> int:
        """Return the number of steps from a step to the next one that a scan follows."""
        return self._options.every - step % self._options.every

    def scan(
        self,
        position: Tensor,
        latents: Latents,
        whole: WholeData,
        random: Random,
        step: int,
        warming_up: bool,
        omega: float,
    ) -> tuple[Tensor, Latents]:
        """
        Draw all latents, and the weights whose gammas change; return the position and the latents.

        :param WholeData whole: the likelihood.
        :param int step: the number of the step before the scan.
        :param bool warming_up: whether the curvature may be taken anew, by scans 1, 2, 4, 8 and so
            on, which settle the chain where its curvature is. After warm-up it stays, so that the
            law of a scan does.
        :param omega: of no use here: nothing is averaged.
        """
        assert self.spike_and_slab is not None and isinstance(latents.ssgl, DrawnLatents)
        scan = self._start(position, latents.ssgl, whole, random)
        number = step // self._options.every
        settles = number == 1 or (warming_up and number & (number - 1) == 0)
        if self._options.flips:
            if number == 1:
                scan.settle()
            if settles:
                scan.take_curvature()
            scan.draw_mixing()
            scan.flip(settles)
        else:
            scan.draw_gamma()
            scan.draw_mixing()
        scan.draw_delta()
        if self.spike_and_slab.sigma_learned.any:
            scan.draw_sigma()
        if self.learns_width:
            scan.draw_width()
        found = Latents(scan.latents, {})
        if self.learns_width and settles:
            found = self.limit_steps(scan.position, found, whole, random)
        return scan.position, found

    def take_curvature(self, position: Tensor, latents: DrawnLatents, whole: WholeData) -> Tensor:
        """Return the curvature of the log likelihood at a position, a field of the latents."""
        random = Random([None], position.shape[:-1], position.device)  # of which none is drawn
        scan = self._start(position, latents, whole, random)
        scan.take_curvature()
        return scan.latents.curvature

    def flip(
        self, position: Tensor, latents: DrawnLatents, whole: WholeData, random: Random
    ) -> tuple[Tensor, DrawnLatents]:
        """Draw the gammas alone, and the weights that change with them; see :meth:`scan`."""
        scan = self._start(position, latents, whole, random)
        scan.draw_mixing()
        scan.flip()
        return scan.position, scan.latents

    def _start(
        self, position: Tensor, latents: DrawnLatents, whole: WholeData, random: Random
    ) -> _Scan:
        rule = self.spike_and_slab
        assert rule is not None
        return _Scan(rule, self._structure, self._units, position, latents, whole, random)

    def figures(self, latents: Latents | None) -> dict[str, Tensor]:
        if latents is None or not isinstance(latents.ssgl, DrawnLatents):
            return {}
        kinds = ("flips", "sigmas", "widths") if self.learns_width else ("flips", "sigmas")
        names = [f"{kind}_{what}" for kind in kinds for what in ("proposed", "accepted")]
        return dict(zip(names, latents.ssgl.counts.unbind(-1), strict=True))


class _Scan:
    """
    One scan. Arithmetic is in double precision, whatever the precision of the model.

    :param Tensor position: the weights, shape (..., D).
    """

    def __init__(
        self,
        rule: SpikeAndSlabRule,
        structure: Structure,
        units: Units,
        position: Tensor,
        latents: DrawnLatents,
        whole: WholeData,
        random: Random,
    ) -> None:
        self.position = position
        self.latents = latents
        self._rule, self._structure, self._units = rule, structure, units
        self._whole, self._random = whole, random
        self._log_likelihood: Tensor | None = None
        self._spike = rule.spike
        if latents.width is not None:
            self._spike = Laplace(latents.width.double())
        self._components: tuple[Component, Component] = (self._spike, rule.slab)

    @property
    def _beta(self) -> Tensor:
        return self._structure.select_sparse(self.position).double()

    @property
    def _sigma(self) -> Tensor:
        """Sigma of every weight, shape (..., P)."""
        return self._rule.spread_sigma(self.latents.sigma.double()).expand_as(self._beta)

    @property
    def _gamma(self) -> Tensor:
        """Whether a weight is in the slab, shape (..., P)."""
        return self.latents.slab > 0.5

    def _store(self, beta: Tensor) -> None:
        self.position = self._place(beta)

    def _place(self, beta: Tensor) -> Tensor:
        """Return the position with other sparse weights."""
        position = self.position.clone()
        self._structure.select_sparse(position).copy_(beta)
        return position

    def _evaluate(self, beta: Tensor, sigma: Tensor | None = None) -> Evaluated:
        """Return the log likelihood at other sparse weights and sigmas."""
        latents = self.latents
        if sigma is not None:
            latents = latents._replace(sigma=sigma.to(latents.sigma))
        found = self._whole.evaluate(self._place(beta), Latents(latents, {}))
        gradient = self._structure.select_sparse(found.gradient).double()
        return Evaluated(found.value.double(), gradient, found.residuals)

    # -- flips

    def take_curvature(self) -> None:
        """Take the curvature of the log likelihood at the current weights."""
        flat = self._whole.curvature(
            self.position, Latents(self.latents, {}), self._units.columns()
        )
        blocks = map(make_positive, self._units.blocks(flat.double()))
        flat = torch.cat([block.flatten(-3) for block in self._in_sigmas(blocks, 1.0)], dim=-1)
        self.latents = self.latents._replace(curvature=flat.to(self.latents.curvature))

    def _in_sigmas(self, blocks: Iterable[Tensor], power: float) -> Blocks:
        """Multiply a curvature by powers of the sigmas that are scales of a likelihood."""
        has = self._rule.spread_sigma(self._rule.has_likelihood)
        factors = self._units.split(torch.where(has, self._sigma, 1.0) ** power)
        return [
            block * (factor.unsqueeze(-1) * factor.unsqueeze(-2))
            for block, factor in zip(blocks, factors, strict=True)
        ]

    def settle(self) -> None:
        """
        Draw delta and sigma given the first gammas, outside the counts. Their first values, 1/2 and
        1, would have the first flips put a tenth or more of all weights in the slab.
        """
        counts = self.latents.counts
        self.draw_mixing()
        self.draw_delta()
        if self._rule.sigma_learned.any:
            self.draw_sigma()
        self.latents = self.latents._replace(counts=counts)

    def draw_mixing(self) -> None:
        """Turn Student components into Gaussians, whose variances are drawn given the weights."""
        u = self._beta / self._sigma
        parts = []
        for part, has in zip((self._spike, self._rule.slab), (False, True), strict=True):
            if isinstance(part, Student):
                square = torch.where(self._gamma == has, u.square() / part.v, -1.0)
                mixing = draw_mixing(part.df * torch.ones_like(u), square, self._random)
                part = Gaussian(part.v * mixing)
            parts.append(part)
        self._components = (parts[0], parts[1])

    def flip(self, settling: bool = False) -> None:
        """
        Draw all gammas, each with its weights summed out.

        :param bool settling: whether the scan need not keep the posterior; its flips are not those
            of a Metropolis kernel, and stay outside the counts.
        """
        units, latents = self._units, self.latents
        curvature = self._in_sigmas(units.blocks(latents.curvature.double()), -1.0)
        spike, slab = (self._conditional(part, curvature) for part in self._components)
        delta = self._rule.spread_delta(latents.delta.double()).expand_as(self._beta)
        laws = UnitLaws(units, curvature, spike, slab, units.first(delta))
        gamma = units.first(latents.slab.double())
        found = flip(self._beta, gamma, laws, self._evaluate, self._random, settling)
        self._store(found.beta)
        self._log_likelihood = found.log_likelihood
        self.latents = latents._replace(
            rho=units.spread(found.probability).to(latents.rho),
            slab=units.spread(found.gamma).to(latents.slab),
        )
        if not settling:
            self._count(found.proposed, found.accepted, 0)

    def _conditional(self, part: Component, curvature: Blocks) -> Conditional:
        if isinstance(part, Laplace):
            return LaplaceConditional(self._units, curvature, self._sigma * part.v)
        return GaussianConditional(self._units, curvature, self._sigma.square() * part.v)

    def draw_gamma(self) -> None:
        """Draw all gammas given the weights, by (4)."""
        u = (self._structure.select_sparse(self.position) / self._sigma).abs()
        latents = self.latents
        rho = self._rule.inclusion(u.to(latents.rho), latents.delta, latents.width)
        probability = self._units.first(rho.double())
        gamma = self._random.uniform(self._units.count) < probability
        slab = self._units.spread(gamma).to(rho)
        self.latents = self.latents._replace(rho=rho, slab=slab)

    # -- delta, sigma and v0

    def draw_delta(self) -> None:
        """Draw the learned deltas from their Beta laws given gamma."""
        rule, delta = self._rule, self.latents.delta
        if not rule.delta_learned.any:
            return
        less_one, less_two = rule.delta_counts
        ones = rule.sum_by_delta(self.latents.slab * rule.share).double() + less_one + 1.0
        drawn = draw_beta(ones, less_two + 2.0 - ones, self._random).to(delta)
        limits = torch.finfo(delta.dtype)
        drawn = drawn.clamp(limits.tiny, 1.0 - limits.eps)
        self.latents = self.latents._replace(delta=rule.delta_learned.select(drawn, delta))

    def draw_sigma(self) -> None:
        """Draw the learned sigmas, and move the narrow weights with them."""
        rule, beta, gamma = self._rule, self._beta, self._gamma
        value = self._log_likelihood
        if value is None:
            value = self._evaluate(beta).value
        wide, sigma = self._wide_weights(gamma), self.latents.sigma.double()
        moved = move_sigma(rule, beta, sigma, wide, value, self._evaluate, self._random)
        self._store(moved.beta)
        self.latents = self.latents._replace(sigma=moved.sigma.to(self.latents.sigma))
        self._count(torch.ones_like(moved.accepted), moved.accepted, 2)

    def _wide_weights(self, gamma: Tensor) -> WideWeights:
        mask = gamma == self._rule.spike_is_narrow
        return WideWeights(mask, *penalties(gamma.double(), 0.0, *self._components))

    def draw_width(self) -> None:
        """Draw v0, with the spikes, and once more with sigma, by the moves of ``width``."""
        rule, random, spikes = self._rule, self._random, ~self._gamma
        law, beta = rule.width_law, self._beta
        assert law is not None and isinstance(self.latents, GibbsLatentsWithWidth)
        width = self.latents.width
        count = spikes.sum(-1, keepdim=True).double()
        total = torch.where(spikes, beta.abs() / self._sigma, 0.0).sum(-1, keepdim=True)
        v0 = draw_width(width.double(), count, total, law, random)
        value = self._evaluate(beta).value
        scaled = scale_spikes(
            beta, v0, spikes, value, lambda own: self._evaluate(own).value, law, random
        )
        self._store(scaled.beta)
        self._count(torch.full_like(scaled.accepted, TRIES), scaled.accepted, 4)
        assert isinstance(self.latents, GibbsLatentsWithWidth)
        sigma, v0 = self.latents.sigma.double(), scaled.v0
        if rule.sigma_learned.any and len(rule.sigmas) == 1:
            residuals = self._evaluate(self._beta).residuals
            wide = self._wide_weights(self._gamma)
            drawn = draw_sigma_at_fixed_weights(
                rule, self._beta, sigma, wide, residuals, law.concentration, random
            )
            sigma, v0 = accept_sigma(sigma, drawn, v0, law, random)
        self.latents = self.latents._replace(sigma=sigma.to(self.latents.sigma), width=v0.to(width))

    def _count(self, proposed: Tensor, accepted: Tensor, place: int) -> None:
        counts = self.latents.counts.clone()
        counts[..., place : place + 2] += torch.cat([proposed, accepted], dim=-1)
        self.latents = self.latents._replace(counts=counts)
