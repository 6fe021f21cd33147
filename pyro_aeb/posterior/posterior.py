# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Q, the log posterior that the weights are sampled from: likelihood and priors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.build import AnyAdaptation, make_adaptation
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.model.structure import Structure
from pyro_aeb.posterior.likelihood import Evaluation, Likelihood
from pyro_aeb.posterior.program import CompiledLikelihood


class NormalPrior:
    r"""
    The closed-form prior of the dense weights, equation (1), last line: independent
    :math:`\beta \sim N(\mu_0, \sigma_0^2)`, M numbers.
    """

    def __init__(self, structure: Structure) -> None:
        blocks = structure.normal
        self.size = sum(block.size for block in blocks)
        empty = [torch.zeros(0, dtype=structure.dtype, device=structure.device)]
        self._loc = torch.cat([block.loc.reshape(-1) for block in blocks] or empty)
        scale = torch.cat([block.scale.reshape(-1) for block in blocks] or empty)
        self._precision = scale**-2

    def add_gradient(self, gradient: Tensor, beta: Tensor) -> None:
        r"""Add :math:`(\mu_0 - \beta) / \sigma_0^2` to ``gradient``, shape (..., M), in place."""
        gradient.addcmul_(self._loc - beta, self._precision)

    def potential(self, beta: Tensor) -> Tensor:
        r"""Return :math:`\sum (\beta - \mu_0)^2 / 2 \sigma_0^2`, shape (...)."""
        return 0.5 * ((beta - self._loc).square() * self._precision).sum(-1)


class Posterior:
    """
    Q and its gradient at a flat position.

    :param Buffers buffers: those that the model changes, where several chains step together.
    :param average: turns a likelihood evaluated on this process's data into that on the data of all
        processes; None where there is one process.
    :param adaptation: the options by which latents are learned, None where nothing is.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        structure: Structure,
        buffers: Buffers | None = None,
        average: Callable[[Evaluation], Evaluation] | None = None,
        adaptation: AnyAdaptation | None = None,
    ) -> None:
        self.model = model
        self.structure = structure
        self.adaptation = make_adaptation(structure, adaptation)
        self.as_written = Likelihood(model, structure, buffers)
        self.likelihood: Likelihood | CompiledLikelihood = self.as_written
        self._average = average
        normal = NormalPrior(structure)
        self._normal = normal if normal.size else None
        self._normal_range = slice(structure.sparse_size, structure.sparse_size + normal.size)

    def compile(
        self, buffers: Buffers, partial: Collection[str], report: Callable[[str], None] | None
    ) -> None:
        """
        Compile the likelihood's gradient.

        :param partial: the plates whose indices change from step to step.
        :param report: see :class:`~pyro_aeb.posterior.program.Program`.
        """
        if isinstance(self.likelihood, Likelihood):
            self.likelihood = CompiledLikelihood(self.likelihood, buffers, partial, report)

    def evaluate(self, position: Tensor, latents: Latents | None, batch: Batch) -> Evaluation:
        """
        Evaluate the likelihood on a minibatch, and the gradient (2) of Q.

        :param Tensor position: shape (D,), or (C, D) of C chains.
        :param Latents latents: None for a model without adaptation.
        :param Batch batch: the model's arguments and its subsampled plates' indices.
        """
        likelihood = self.evaluate_likelihood(position, latents, batch)
        self.add_prior(likelihood.gradient, position, latents)
        return likelihood

    def evaluate_likelihood(
        self, position: Tensor, latents: Latents | None, batch: Batch
    ) -> Evaluation:
        """Evaluate the likelihood on a minibatch of the data of all processes."""
        values = self.adaptation.values(latents)
        likelihood = self.likelihood.evaluate(position, values, batch)
        return likelihood if self._average is None else self._average(likelihood)

    @torch.no_grad()
    def add_prior(self, gradient: Tensor, position: Tensor, latents: Latents | None) -> Tensor:
        """Add the closed-form priors' part of (2) to the likelihood's, in place, and return it."""
        rule = self.adaptation.spike_and_slab
        if rule is not None and latents is not None and latents.ssgl is not None:
            sparse = self.structure.select_sparse
            rule.add_gradient(sparse(gradient), latents.ssgl, sparse(position))
        if self._normal is not None:
            part = self._normal_range
            self._normal.add_gradient(gradient[..., part], position[..., part])
        return gradient

    def potential(self, log_density: Tensor, position: Tensor, latents: Latents | None) -> Tensor:
        """Return -Q without the terms that the weights do not enter, shape (...)."""
        potential = -log_density
        rule = self.adaptation.spike_and_slab
        if rule is not None and latents is not None and latents.ssgl is not None:
            sparse = self.structure.select_sparse(position)
            potential = potential + rule.potential(latents.ssgl, sparse)
        if self._normal is not None:
            potential = potential + self._normal.potential(position[..., self._normal_range])
        return potential
