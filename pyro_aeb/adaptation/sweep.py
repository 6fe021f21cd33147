# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents of a model between two steps: the contract of an adaptation, and stochastic
approximation, one sweep of equations (4) to (8) after every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.equations import stochastic_approximation
from pyro_aeb.adaptation.flips import Evaluated
from pyro_aeb.adaptation.latent_values import (
    AnyLatents,
    AveragedLatents,
    LatentsWithWidth,
    WithWidth,
)
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.site_updates import SiteUpdates
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.adaptation.width import STIFFEST, largest_curvature, newton_factor
from pyro_aeb.errors import is_domain_error
from pyro_aeb.latents.contract import Seen
from pyro_aeb.model.structure import Residuals, Structure

WIDTH_EVERY = 10
"""The steps from one move of the width of the spikes to the next."""


class SufficientStatistics(NamedTuple):
    """
    The statistics of a minibatch that latents are learned from.

    :param dict residuals: of the observed Normal sites whose scale is learned, by name.
    :param dict seen: for the sites that have updates of their own, by name.
    """

    residuals: dict[str, Residuals]
    seen: dict[str, Seen]


class Latents(NamedTuple):
    """
    The values of all learned latents.

    :param ssgl: of the spike-and-slab sites, None where there are none.
    :param dict sites: of the sites that have updates of their own, by name; beside them the
        averages of :class:`~pyro_aeb.latents.AveragedStatistics`.
    """

    ssgl: AnyLatents | None
    sites: dict[str, Tensor]


class WholeData(Protocol):
    """The likelihood of all data."""

    def evaluate(self, position: Tensor, latents: Latents) -> Evaluated:
        """Return the log likelihood, and its gradient at the whole position, shape (..., D)."""
        ...

    def curvature(self, position: Tensor, latents: Latents, columns: list[Tensor]) -> Tensor:
        """
        Return some of minus the second derivatives of the log likelihood, shape (..., n).

        :param columns: of consecutive rows, those of every row, shape (rows, m) each.
        """
        ...


class Adaptation(ABC):
    """
    The latents of one model: what the weights' prior takes from them, and their updates after every
    step.

    :param rule: the spike-and-slab prior, None where there is none.
    """

    is_sampled: ClassVar[bool] = False
    """Whether the latents' values are draws from their posterior."""

    def __init__(self, rule: SpikeAndSlabRule | None) -> None:
        self.spike_and_slab = rule
        self.learns_width = rule is not None and rule.width is not None

    @abstractmethod
    def init(self, values: Mapping[str, Tensor]) -> Latents | None:
        """
        Return the latents before the first step, None where nothing is learned.

        :param values: first values of all latent sites, in constrained space, by name.
        """

    @abstractmethod
    def update(
        self,
        latents: Latents | None,
        position: Tensor,
        statistics: SufficientStatistics,
        omega: float | Tensor,
        inverse_temperature: float | Tensor = 1.0,
    ) -> Latents | None:
        """
        Return the latents after a step.

        :param Tensor position: the weights after the step, shape (..., D).
        :param omega: weight of (8); 0 leaves the latents as they are.
        :param inverse_temperature: tau of the step.
        """

    @property
    def scans(self) -> bool:
        """Whether some latents move in scans of all data between the steps."""
        return self.is_sampled

    @abstractmethod
    def steps_to_scan(self, step: int) -> int:
        """Return the number of steps from a step to the next one that a scan follows."""

    @abstractmethod
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
        Return the position and the latents after a scan.

        :param WholeData whole: the likelihood.
        :param int step: the number of the step before the scan.
        :param bool warming_up: whether the next draw is one of warm-up.
        :param omega: weight of (8) at that step; 0 where tau is not 1.
        """

    def step_unit(self, latents: Latents | None) -> Tensor:
        """
        Return the unit of the steps of the weights, shape (..., 1), where v0 is learned: the scale
        of the narrowest spikes, sigma v0, or what the largest curvature allows.
        """
        assert latents is not None and isinstance(latents.ssgl, WithWidth)
        sigma = latents.ssgl.sigma.amin(-1, keepdim=True)
        most = (STIFFEST / latents.ssgl.largest_curvature).sqrt() * self._scale(sigma)
        return torch.minimum(latents.ssgl.width * sigma, most)

    def _scale(self, sigma: Tensor) -> Tensor:
        """Return sigma where it is the scale of a likelihood, otherwise 1."""
        assert self.spike_and_slab is not None
        return torch.where(self.spike_and_slab.has_likelihood.all(), sigma, 1.0)

    def limit_steps(
        self, position: Tensor, latents: Latents, whole: WholeData, random: Random
    ) -> Latents:
        """
        Return the latents with the largest curvature of the log likelihood so far, which bounds the
        steps of the weights where v0 is learned; see :mod:`pyro_aeb.adaptation.width`. After
        warm-up it stays, so that the law of a step given the latents does. The latents are
        returned as they are where the model has no density so far from the weights.
        """
        assert isinstance(latents.ssgl, WithWidth)
        ssgl = latents.ssgl
        unit, scale = self.step_unit(latents), self._scale(ssgl.sigma.amin(-1, keepdim=True))
        try:
            found = largest_curvature(
                lambda at: whole.evaluate(at, latents).gradient, position, unit, random
            )
        except Exception as error:
            if not is_domain_error(error):
                raise
            return latents
        most = torch.maximum(ssgl.largest_curvature, (found * scale.square()).to(unit))
        return latents._replace(ssgl=ssgl._replace(largest_curvature=most))

    def values(self, latents: Latents | None) -> dict[str, Tensor]:
        """Return the learned sites' values, by name."""
        if latents is None or latents.ssgl is None or self.spike_and_slab is None:
            return {}
        values = self.spike_and_slab.site_values(latents.ssgl)
        if self.learns_width:
            values |= self.spike_and_slab.width_value(latents.ssgl)
        return values

    def statistics(self, before: Latents, after: Latents, omega: float) -> dict[str, Tensor]:
        """
        Return statistics of a step, each of shape (...).

        :param Latents before: the latents before its update.
        :param Latents after: the latents after it.
        """
        return {}

    def figures(self, latents: Latents | None) -> dict[str, Tensor]:
        """Return figures of the latents at a draw, each of shape (...)."""
        return {}

    def collapsed(self, latents: Latents | None) -> list[str]:
        """Return the learned delta sites that cannot leave 0 or 1."""
        return []

    def collapse_bounds(self) -> dict[str, tuple[float, float]]:
        """Return for every learned delta site two numbers, beyond which it has collapsed."""
        return {}


class AveragedAdaptation(Adaptation):
    """
    Stochastic approximation, one sweep of equations (4) to (8) after every step.

    :param StochasticApproximation options: None where nothing is learned.
    """

    def __init__(
        self, structure: Structure, options: StochasticApproximation | None = None
    ) -> None:
        self._options = options or StochasticApproximation(0.0)
        marginal = self._options.penalties == "current"
        from_slab = self._options.sigma_from == "slab"
        has_rule = bool(structure.sparse)
        super().__init__(SpikeAndSlabRule(structure, marginal, from_slab) if has_rule else None)
        self.sites = SiteUpdates(structure.learned) if structure.learned else None
        self._structure = structure

    def init(self, values: Mapping[str, Tensor]) -> Latents | None:
        rule = self.spike_and_slab
        if rule is None and self.sites is None:
            return None
        ssgl = None if rule is None else rule.init(values, self._options)
        return Latents(ssgl, {} if self.sites is None else self.sites.init(values))

    def update(
        self,
        latents: Latents | None,
        position: Tensor,
        statistics: SufficientStatistics,
        omega: float | Tensor,
        inverse_temperature: float | Tensor = 1.0,
    ) -> Latents | None:
        if latents is None or (not isinstance(omega, Tensor) and omega == 0.0):
            return latents
        ssgl, sites = latents
        if self.spike_and_slab is not None and isinstance(ssgl, AveragedLatents):
            beta = self._structure.select_sparse(position)
            ssgl = self.spike_and_slab.update(
                ssgl, beta, statistics.residuals, omega, inverse_temperature
            )
        if self.sites is not None:
            sites = self.sites.update(sites, statistics.seen, omega)
        return Latents(ssgl, sites)

    @property
    def scans(self) -> bool:
        return self.learns_width

    def steps_to_scan(self, step: int) -> int:
        return WIDTH_EVERY - step % WIDTH_EVERY

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
        """Move the width of the spikes, and the spikes with it; see ``adaptation.width``."""
        rule, ssgl = self.spike_and_slab, latents.ssgl
        if omega == 0.0 or rule is None or not isinstance(ssgl, LatentsWithWidth):
            return position, latents
        assert rule.width_law is not None
        sparse = self._structure.select_sparse
        beta = sparse(position)
        rho = rule.inclusion((beta / rule.spread_sigma(ssgl.sigma)).abs(), ssgl.delta, ssgl.width)
        spikes = (1.0 - rho) * beta
        without = position.clone()
        sparse(without).sub_(spikes)
        now, zero = whole.evaluate(position, latents), whole.evaluate(without, latents)
        slope = (spikes * sparse(now.gradient)).sum(-1, keepdim=True)
        # Of the parabola through both values, with that slope.
        curvature = 2.0 * ((now.value - zero.value).unsqueeze(-1) - slope)
        omega = 1.0 - (1.0 - omega) ** WIDTH_EVERY  # of all steps since the last scan
        before = ssgl.curvature_of_width
        average = stochastic_approximation(before, curvature.to(before), omega)
        average = torch.where(before == 0.0, curvature.to(before), average)
        factor = newton_factor(ssgl.width, slope, average, rule.width_law, omega)
        moved = position.clone()
        sparse(moved).add_((factor - 1.0) * spikes)
        ssgl = ssgl._replace(width=ssgl.width * factor, curvature_of_width=average)
        latents, number = latents._replace(ssgl=ssgl), step // WIDTH_EVERY
        if warming_up and number & (number - 1) == 0:
            latents = self.limit_steps(moved, latents, whole, random)
        return moved, latents

    def values(self, latents: Latents | None) -> dict[str, Tensor]:
        values = super().values(latents)
        if self.sites is not None and latents is not None:
            values.update(self.sites.values(latents.sites))
        return values

    def statistics(self, before: Latents, after: Latents, omega: float) -> dict[str, Tensor]:
        return latent_residuals(before, after, omega, self._structure)

    def collapsed(self, latents: Latents | None) -> list[str]:
        ssgl = None if latents is None else latents.ssgl
        if self.spike_and_slab is None or not isinstance(ssgl, AveragedLatents):
            return []
        return self.spike_and_slab.collapsed(ssgl)

    def collapse_bounds(self) -> dict[str, tuple[float, float]]:
        return {} if self.spike_and_slab is None else self.spike_and_slab.collapse_bounds()


def latent_residuals(
    before: Latents, after: Latents, omega: float, structure: Structure
) -> dict[str, Tensor]:
    r"""
    Return how far the latents are from their fixed point, :math:`\|\tilde\theta - \theta\|`, each
    of shape (...): of rho, of sigma and delta where they are learned, and of every site with an
    update of its own. Equation (8) moves a latent by :math:`\omega (\tilde\theta - \theta)`, so
    no further sweep is needed. NaN where omega is 0.
    """
    scale = 1.0 / omega if omega > 0.0 else torch.nan
    residuals = {}
    if before.ssgl is not None and after.ssgl is not None:
        is_learned = {
            "rho": True,
            "sigma": any(sigma.site for sigma in structure.sigmas),
            "delta": any(delta.site for delta in structure.deltas),
        }
        for name in (name for name, learned in is_learned.items() if learned):
            change = getattr(after.ssgl, name) - getattr(before.ssgl, name)
            residuals[name] = torch.linalg.vector_norm(change, dim=-1) * scale
    for site in structure.learned:
        change = after.sites[site.name] - before.sites[site.name]
        flat = change.reshape((*change.shape[: change.dim() - len(site.shape)], -1))
        residuals[site.name] = torch.linalg.vector_norm(flat, dim=-1) * scale
    return {f"sa_residual_{name}": residual for name, residual in residuals.items()}
