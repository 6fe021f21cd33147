# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A model with its data, whose Q and gradient are computed by the package and by Pyro."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.sweep import AveragedAdaptation, Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.posterior.likelihood import Evaluation
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.objective import Model, objective, whole_plates


class Problem:
    """
    A model with its data.

    :param bool adapt: whether latents of SSGL sites are learned.
    :raises ModelError: if the model cannot be sampled.
    """

    def __init__(
        self, model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], adapt: bool
    ) -> None:
        self.model, self.arguments = model, Arguments(args, kwargs)
        self.structure = inspect_model(model, args, kwargs, adapt)
        self.posterior = Posterior(model, self.structure)

    def random_points(self, seed: int) -> Iterator[tuple[Tensor, Latents | None]]:
        """
        Draw three random positions with latents, without torch's global generator.

        Positions, shape (D,), are standard normal in unconstrained space. Latents are None if none
        are learned; otherwise sigma^2 is in (0.3, 1.3), delta and every rho are in (0.2, 0.8), and
        other learned sites near the middle of unconstrained space.
        """
        structure, adaptation = self.structure, self.posterior.adaptation
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
            return drawn.to(structure.device, structure.dtype)

        for _ in range(3):
            drawn = torch.randn(structure.size, generator=generator, dtype=torch.float64)
            position = drawn.to(structure.device, structure.dtype)
            if adaptation.spike_and_slab is None and not structure.learned:
                yield position, None
                continue
            values = {s.site: 0.3 + uniform(*s.shape) for s in structure.sigmas if s.site}
            values |= {d.site: 0.2 + 0.6 * uniform(*d.shape) for d in structure.deltas if d.site}
            if structure.width is not None:
                values[structure.width.site] = 0.1 + 0.1 * uniform(*structure.width.shape)
            for site in structure.learned:
                unconstrained = uniform(*site.transform.inverse_shape(site.shape)) - 0.5
                values[site.name] = site.transform(unconstrained)
            inclusion = self._by_site(0.2 + 0.6 * uniform(structure.sparse_size))
            first = StochasticApproximation(1.0, inclusion)
            yield position, AveragedAdaptation(structure, first).init(values)

    def step_gradient(
        self, position: Tensor, latents: Latents | None, indices: Mapping[str, Tensor]
    ) -> Evaluation:
        """Compute the gradient of a step on a minibatch, without side effects."""
        with preserve_buffers(), preserve_random_state():
            return self.posterior.evaluate(position, latents, Batch(self.arguments, indices))

    def objective(
        self, position: Tensor, values: Mapping[str, Tensor], rho: Tensor | None
    ) -> Tensor:
        """
        Compute Q by Pyro's densities, with the Jacobians of constrained sites.

        :param values: values of the learned sites, and indices of plates.
        :param Tensor rho: inclusion probability of every sparse weight, shape (P,); None if SSGL
            sites have their own prior.
        """
        unconstrained = self.structure.unflatten(position)
        values = {**self.structure.constrain(unconstrained), **values}
        inclusion = {} if rho is None else self._by_site(rho)
        total = objective(self.model, *self.arguments, values, inclusion)
        for block in self.structure.general:
            if block.transform is not None:
                x = unconstrained[block.name]
                total = total + block.transform.log_abs_det_jacobian(x, values[block.name]).sum()
        return total

    def full_gradient(self, position: Tensor, latents: Latents | None) -> Tensor:
        """Compute the gradient of Q on all data by Pyro's densities and autograd, shape (D,)."""
        position = position.clone().requires_grad_()
        ssgl = None if latents is None else latents.ssgl
        with whole_plates():
            values = self.posterior.adaptation.values(latents)
            q = self.objective(position, values, None if ssgl is None else ssgl.slab)
        (gradient,) = torch.autograd.grad(q, position)
        return gradient

    def _by_site(self, sparse: Tensor) -> dict[str, Tensor]:
        """Split a vector over all sparse weights, shape (P,), into the shapes of SSGL sites."""
        blocks = self.structure.sparse
        parts = sparse.split([block.size for block in blocks])
        return {b.name: part.reshape(b.shape) for b, part in zip(blocks, parts, strict=True)}


def name_of(model: Model) -> str:
    """Return the name of a model, for a report."""
    return getattr(model, "__name__", type(model).__name__)
