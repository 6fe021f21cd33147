# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Learn the latents of a model: one sweep of equations (4) to (8) after every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.site_updates import SiteUpdates
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabLatents, SpikeAndSlabRule
from pyro_aeb.latents.contract import Seen
from pyro_aeb.model.structure import Residuals, Structure


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

    :param SpikeAndSlabLatents ssgl: of the spike-and-slab sites, None where there are none.
    :param dict sites: of the sites that have updates of their own, by name; beside them the
        averages of :class:`~pyro_aeb.latents.AveragedStatistics`.
    """

    ssgl: SpikeAndSlabLatents | None
    sites: dict[str, Tensor]


class Adaptation:
    """The latents' updates for one model."""

    def __init__(self, structure: Structure) -> None:
        self.spike_and_slab = SpikeAndSlabRule(structure) if structure.sparse else None
        self.sites = SiteUpdates(structure.learned) if structure.learned else None
        self._structure = structure

    def init(
        self, values: Mapping[str, Tensor], options: StochasticApproximation
    ) -> Latents | None:
        """
        Return the latents before the first step, None where nothing is learned.

        :param values: first values of the latent sites, in constrained space, by name.
        """
        if self.spike_and_slab is None and self.sites is None:
            return None
        ssgl = None if self.spike_and_slab is None else self.spike_and_slab.init(values, options)
        return Latents(ssgl, {} if self.sites is None else self.sites.init(values))

    def update(
        self,
        latents: Latents | None,
        position: Tensor,
        statistics: SufficientStatistics,
        omega: float | Tensor,
    ) -> Latents | None:
        """
        Return the latents after one sweep of (4) to (8).

        :param Tensor position: the weights after the step, shape (..., D).
        :param omega: weight of the sweep; 0 leaves the latents as they are.
        """
        if latents is None or (not isinstance(omega, Tensor) and omega == 0.0):
            return latents
        ssgl, sites = latents
        if self.spike_and_slab is not None and ssgl is not None:
            beta = self._structure.select_sparse(position)
            ssgl = self.spike_and_slab.update(ssgl, beta, statistics.residuals, omega)
        if self.sites is not None:
            sites = self.sites.update(sites, statistics.seen, omega)
        return Latents(ssgl, sites)

    def values(self, latents: Latents | None) -> dict[str, Tensor]:
        """Return the learned sites' values, by name."""
        if latents is None:
            return {}
        values: dict[str, Tensor] = {}
        if self.spike_and_slab is not None and latents.ssgl is not None:
            values.update(self.spike_and_slab.site_values(latents.ssgl))
        if self.sites is not None:
            values.update(self.sites.values(latents.sites))
        return values


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
