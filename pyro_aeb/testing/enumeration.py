# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
All minibatches of a tiny data set, and the mean gradient over them.

There is no Monte Carlo error: over all minibatches, equally likely, the mean of the stochastic
gradient must be the gradient of Q on all data, up to rounding, or the sampler has another target.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.data.minibatches import Order
from pyro_aeb.testing.objective import Model
from pyro_aeb.testing.problem import Problem
from pyro_aeb.testing.reports import Outcome, require

LIMIT = 20_000
"""Largest number of minibatches."""


def minibatches(
    plates: Mapping[str, tuple[int, int]], order: Order = "permutation"
) -> Iterator[dict[str, Tensor]]:
    """
    Yield all minibatches of some plates, which are equally likely.

    :param plates: plate name to (size N, subsample size n).
    :param order: ``"permutation"`` for all subsets of n, ``"replacement"`` for all N^n draws.
    :returns: for every minibatch, plate name to indices.
    :raises ValueError: if there are more than 20,000.
    """
    count = math.prod(
        size**batch if order == "replacement" else math.comb(size, batch)
        for size, batch in plates.values()
    )
    if count > LIMIT:
        raise ValueError(
            f"plates {dict(plates)} have {count} minibatches, expected at most {LIMIT}; use a tiny "
            "data set, such as 6 data in batches of 2"
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
    Check that the mean of the stochastic gradient over all minibatches is the gradient of Q on all
    data, by autograd of Pyro's own densities; see :mod:`pyro_aeb.testing.objective`.

    :param model: a Pyro model with plates that subsample, ``pyro.plate(..., subsample_size=n)``.
    :param args: arguments of the model, a tiny data set, preferably in float64.
    :param kwargs: keyword arguments of the model.
    :param bool adapt: whether latents of SSGL sites are learned.
    :param order: how minibatches are drawn, as the kernel's option ``minibatches``.
    :param int seed: seed of the points at which gradients are compared.
    :raises AssertionError: if the gradients differ by more than rounding.
    :raises ValueError: if no plate subsamples, or there are too many minibatches.
    """
    problem = Problem(model, args, kwargs or {}, adapt)
    structure = problem.structure
    if all(size == batch for size, batch in structure.plates.values()):
        raise ValueError(
            f"plates {dict(structure.plates)} take all of their data, expected one that subsamples "
            "with subsample_size"
        )
    worst = scatter = 0.0
    for position, latents in problem.random_points(seed):
        total, size, number = torch.zeros_like(position, dtype=torch.float64), 0.0, 0
        first = None
        for indices in minibatches(structure.plates, order):
            gradient = problem.step_gradient(position, latents, indices).gradient.double()
            first = gradient if first is None else first
            total, number = total + gradient, number + 1
            size = max(size, float(gradient.abs().max()))
            scatter = max(scatter, float((gradient - first).abs().max()))
        mean, expected = total / number, problem.full_gradient(position, latents).double()
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
