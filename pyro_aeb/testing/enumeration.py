# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Every minibatch of a tiny data set, and the mean of what a step sees on them.

There is no Monte Carlo error here: over all minibatches, each as likely as any other, the mean of
the stochastic gradient is the gradient of Q on all data, to rounding, or the sampler has another
target.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.sweep import Latents
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.data.minibatches import Order
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.objective import Model, by_site, objective_at, whole_plates
from pyro_aeb.testing.points import gradient_at, points
from pyro_aeb.testing.reports import Outcome, require

LIMIT = 20_000
"""The largest number of minibatches."""


def minibatches(
    plates: Mapping[str, tuple[int, int]], order: Order = "permutation"
) -> Iterator[dict[str, Tensor]]:
    """
    All minibatches of some plates, each as likely as any other.

    :param plates: plate name to (size N, subsample size n).
    :param order: ``"permutation"`` for all subsets of n, ``"replacement"`` for all N^n draws.
    :returns: plate name to indices, one mapping a minibatch.
    :raises ValueError: if they are more than 20,000.
    """
    count = math.prod(
        size**batch if order == "replacement" else math.comb(size, batch)
        for size, batch in plates.values()
    )
    if count > LIMIT:
        raise ValueError(
            f"plates {dict(plates)} have {count} minibatches, expected at most {LIMIT} to go "
            "through; use a tiny data set, such as 6 data in batches of 2"
        )
    each = [
        itertools.product(range(size), repeat=batch)
        if order == "replacement" and batch < size
        else itertools.combinations(range(size), batch)
        for size, batch in plates.values()
    ]
    for chosen in itertools.product(*each):
        yield {name: torch.tensor(i) for name, i in zip(plates, chosen, strict=True)}


def check_unbiased_gradient(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    adapt: bool = False,
    order: Order = "permutation",
    seed: int = 0,
) -> Outcome:
    """
    The mean of the stochastic gradient over all minibatches is the gradient of Q on all data, which
    is autograd's of Pyro's own densities; see :mod:`pyro_aeb.testing.objective`.

    :param model: a Pyro model with plates that subsample, ``pyro.plate(..., subsample_size=n)``.
    :param args: its arguments, a tiny data set, best in float64.
    :param kwargs: its keyword arguments.
    :param bool adapt: whether latents of SSGL sites are learned.
    :param order: how minibatches are drawn; see ``Minibatches``.
    :param int seed: of the points at which gradients are compared.
    :raises AssertionError: if they differ by more than rounding.
    :raises ValueError: if no plate subsamples, or there are too many minibatches.
    """
    kwargs = kwargs or {}
    structure = inspect_model(model, args, kwargs, adapt)
    posterior = Posterior(model, structure)
    if all(size == batch for size, batch in structure.plates.values()):
        raise ValueError(
            f"plates {dict(structure.plates)} take all of their data, expected one that subsamples "
            "with subsample_size"
        )
    worst = scatter = 0.0
    for position, latents in points(posterior, seed):
        mean, size, number = torch.zeros_like(position, dtype=torch.float64), 0.0, 0
        first = None
        for indices in minibatches(structure.plates, order):
            batch = Batch(Arguments(args, kwargs), indices)
            gradient = gradient_at(posterior, position, latents, batch).gradient.double()
            first = gradient if first is None else first
            mean, number = mean + gradient, number + 1
            size = max(size, float(gradient.abs().max()))
            scatter = max(scatter, float((gradient - first).abs().max()))
        mean = mean / number
        expected = whole_gradient(model, args, kwargs, posterior, position, latents).double()
        worst = max(worst, float((mean - expected).abs().max()) / max(size, 1e-300))
        require(
            worst <= 1000 * torch.finfo(structure.dtype).eps,
            f"mean gradient over all {number} minibatches",
            mean.tolist(),
            expected.tolist(),
            "the stochastic gradient is biased: is every observed site in the plate that "
            "subsamples, is the prior outside it, and does the likelihood of a datum depend on "
            "others in its batch (BatchNorm) or on random numbers (dropout)?",
        )
    return Outcome(
        "unbiased gradient" if adapt else "unbiased gradient, own prior",
        f"{number} minibatches ({order}): mean is the full gradient to {worst:.1g}, "
        f"single ones scatter by {scatter:.2g}",
    )


def whole_gradient(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    posterior: Posterior,
    position: Tensor,
    latents: Latents | None,
) -> Tensor:
    """The gradient of Q on all data by autograd, shape (D,)."""
    position = position.clone().requires_grad_()
    slab: dict[str, Tensor] = {}
    if latents is not None and latents.ssgl is not None:
        slab = by_site(posterior.structure, latents.ssgl.slab)
    with whole_plates():
        q = objective_at(
            model, args, kwargs, posterior, position, posterior.adaptation.values(latents), slab
        )
    (gradient,) = torch.autograd.grad(q, position)
    return gradient
