# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Points at which the arithmetic of a model is compared with autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Batch
from pyro_aeb.model.side_effects import preserve_buffers, preserve_random_state
from pyro_aeb.model.structure import LearnedSite
from pyro_aeb.posterior.likelihood import Evaluation
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.objective import by_site


def points(
    posterior: Posterior, seed: int, number: int = 3
) -> Iterator[tuple[Tensor, Latents | None]]:
    """
    Random positions and latents.

    :param Posterior posterior: of the model.
    :param int seed: of the random numbers; torch's own generator is left alone.
    :param int number: how many.
    :returns: positions, shape (D,), standard normal in unconstrained space, each with latents:
        sigma^2 in (0.3, 1.3), delta and every rho in (0.2, 0.8), other learned sites near the
        middle of unconstrained space; None where none are learned.
    """
    structure, rule = posterior.structure, posterior.adaptation.spike_and_slab
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        return drawn.to(structure.device, structure.dtype)

    for _ in range(number):
        drawn = torch.randn(structure.size, generator=generator, dtype=torch.float64)
        position = drawn.to(structure.device, structure.dtype)
        if rule is None and not structure.learned:
            yield position, None
            continue
        first = {s.site: 0.3 + uniform() for s in structure.sigmas if s.site is not None}
        first |= {d.site: 0.2 + 0.6 * uniform() for d in structure.deltas if d.site is not None}
        first |= {s.name: s.transform(_normal(s, uniform)) for s in structure.learned}
        inclusion = by_site(structure, 0.2 + 0.6 * uniform(structure.sparse_size))
        yield position, posterior.adaptation.init(first, StochasticApproximation(1.0, inclusion))


def _normal(site: LearnedSite, uniform: Callable[..., Tensor]) -> Tensor:
    """A value near the middle of a site's unconstrained space."""
    return uniform(*site.transform.inverse_shape(site.shape)) - 0.5


def gradient_at(
    posterior: Posterior, position: Tensor, latents: Latents | None, batch: Batch
) -> Evaluation:
    """What a step sees there. Random number generators and module buffers stay as they were."""
    with preserve_buffers(), preserve_random_state():
        return posterior.evaluate(position, latents, batch)
