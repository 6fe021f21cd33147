# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Q, what the weights are sampled from: the likelihood and the priors put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.site_updates import LearnedSites
from pyro_aeb.adaptation.spike_and_slab import SSGLRule
from pyro_aeb.adaptation.sweep import Latents, Statistics
from pyro_aeb.data.arguments import Batch
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.model.structure import Structure
from pyro_aeb.posterior.compiled_likelihood import TracedLikelihood
from pyro_aeb.posterior.likelihood import Gradient, Likelihood


class Posterior:
    """
    Q and its gradient at a flat position.

    :param model: a Pyro model.
    :param Structure structure: from :func:`~pyro_aeb.model.inspection.inspect_model`.
    :param Buffers buffers: those that the model changes, where several chains step together.
    :param average: makes of the likelihood's part on this process's data that on the data of all
        processes; None where there is one.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        structure: Structure,
        buffers: Buffers | None = None,
        average: Callable[[Gradient], Gradient] | None = None,
    ) -> None:
        self._average = average
        self.structure = structure
        self.likelihood: Likelihood | TracedLikelihood = Likelihood(model, structure, buffers)
        self.rule = SSGLRule(structure) if structure.sparse else None
        self.learned = LearnedSites(structure.learned)
        normal = NormalPrior(structure)
        self._normal = normal if normal.size else None
        self._normal_range = slice(structure.sparse_size, structure.sparse_size + normal.size)

    def compile(self, buffers: Buffers) -> None:
        """
        Compiles the likelihood's gradient from here on.

        :param Buffers buffers: those that the model changes.
        """
        if isinstance(self.likelihood, Likelihood):
            self.likelihood = TracedLikelihood(self.likelihood, buffers)

    def init(
        self, values: Mapping[str, Tensor], request: StochasticApproximation
    ) -> Latents | None:
        """
        The latents before the first step, None where nothing is learned.

        :param values: first values of the latent sites, in constrained space, by name.
        :param StochasticApproximation request: the first rho and kappa.
        """
        if self.rule is None and not self.structure.learned:
            return None
        ssgl = None if self.rule is None else self.rule.init(values, request)
        return Latents(ssgl, self.learned.init(values))

    def update(
        self, latents: Latents, position: Tensor, statistics: Statistics, weight: float | Tensor
    ) -> Latents:
        """
        One sweep of (8) over all that is learned.

        :param Latents latents: before it.
        :param Tensor position: the weights after the step.
        :param Statistics statistics: of the likelihood before it.
        :param float weight: omega at this step.
        """
        ssgl = latents.ssgl
        if self.rule is not None and ssgl is not None:
            beta = self.structure.select_sparse(position)
            ssgl = self.rule.update(ssgl, beta, statistics.residuals, weight)
        return Latents(ssgl, self.learned.update(latents.sites, statistics.seen, weight))

    def gradient(self, position: Tensor, latents: Latents | None, batch: Batch) -> Gradient:
        """
        Equation (2), estimated from one batch.

        :param Tensor position: shape (D,), or (C, D) of C chains.
        :param Latents latents: None for a model without adaptation.
        :param Batch batch: the model's arguments and its subsampled plates' indices.
        """
        result = self.likelihood_gradient(position, latents, batch)
        self.add_prior(result.gradient, position, latents)
        return result

    def likelihood_gradient(
        self, position: Tensor, latents: Latents | None, batch: Batch
    ) -> Gradient:
        """The likelihood's part of :meth:`gradient`, of all processes' data."""
        result = self.likelihood.gradient(position, self.site_values(latents), batch)
        return result if self._average is None else self._average(result)

    @torch.no_grad()
    def add_prior(self, gradient: Tensor, position: Tensor, latents: Latents | None) -> None:
        """Adds the closed-form priors' part to the likelihood's, in place."""
        if self.rule is not None and latents is not None and latents.ssgl is not None:
            sparse = self.structure.select_sparse
            self.rule.add_gradient(sparse(gradient), latents.ssgl, sparse(position))
        if self._normal is not None:
            here = self._normal_range
            self._normal.add_gradient(gradient[..., here], position[..., here])

    def potential(self, log_density: Tensor, position: Tensor, latents: Latents | None) -> Tensor:
        """-Q without the terms that the weights do not enter, from the gradient's log density."""
        potential = -log_density
        if self.rule is not None and latents is not None and latents.ssgl is not None:
            beta = self.structure.select_sparse(position)
            potential = potential + self.rule.potential(latents.ssgl, beta)
        if self._normal is not None:
            potential = potential + self._normal.potential(position[..., self._normal_range])
        return potential

    def site_values(self, latents: Latents | None) -> dict[str, Tensor]:
        """The learned sites' values, by name."""
        if latents is None:
            return {}
        ssgl, rule = latents.ssgl, self.rule
        own = {} if rule is None or ssgl is None else rule.site_values(ssgl)
        return {**own, **self.learned.values(latents.sites)}


class NormalPrior:
    r"""
    Independent priors :math:`\beta \sim N(\mu_0, \sigma_0^2)` of the dense weights, M numbers.

    :param Structure structure: the model's structure.
    """

    def __init__(self, structure: Structure) -> None:
        blocks = structure.normal
        self.size = sum(block.size for block in blocks)
        empty = [torch.zeros(0, dtype=structure.dtype, device=structure.device)]
        self._loc = torch.cat([block.loc.reshape(-1) for block in blocks] or empty)
        scale = torch.cat([block.scale.reshape(-1) for block in blocks] or empty)
        self._precision = scale**-2

    def add_gradient(self, gradient: Tensor, beta: Tensor) -> None:
        r"""Adds :math:`(\mu_0 - \beta) / \sigma_0^2` to ``gradient``, shape (..., M), in place."""
        gradient.addcmul_(self._loc - beta, self._precision)

    def potential(self, beta: Tensor) -> Tensor:
        r""":math:`\sum (\beta - \mu_0)^2 / 2 \sigma_0^2`, shape (...)."""
        return 0.5 * ((beta - self._loc).square() * self._precision).sum(-1)
