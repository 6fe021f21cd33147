# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Kernel Stein discrepancy between draws and exp(tau Q), computed from the draws and the gradient of
tau Q at each; the normalising constant is not needed [1, 2].

The kernel is the inverse multiquadric :math:`k(x, y) = (1 + \|x - y\|^2 / d)^{-1/2}` of the
coordinates, each divided by the standard deviation of its draws, with d their number. The p-value
is that of a wild bootstrap [3], whose signs have the autocorrelation time of the draws.

The test is most sensitive in up to about ten coordinates. In more, all pairs of draws are about
equally far apart, the kernel sees only the sum of the variances, and errors in single directions go
unnoticed: above 50 a small p-value is still evidence, a large one hardly any. Choose sites then;
kernels of a part of the coordinates give a valid test of that part given all others. The test does
not see modes that no draw has reached.

**References**

[1] Qiang Liu, Jason Lee, Michael Jordan (2016), "A kernelized Stein discrepancy for goodness-of-fit
    tests", ICML.

[2] Jackson Gorham, Lester Mackey (2017), "Measuring sample quality with kernels", ICML.

[3] Kacper Chwialkowski, Heiko Strathmann, Arthur Gretton (2016), "A kernel test of goodness of
    fit", ICML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.data.arguments import Batch, leading_lengths
from pyro_aeb.diagnostics.frozen_chain import FrozenChain, freeze
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.mcmc.rank_statistics import effective_size
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.linear import Array
from pyro_aeb.testing.objective import whole_plates


class KSD(NamedTuple):
    """
    Kernel Stein discrepancy of some draws.

    :param float squared: squared discrepancy, a V-statistic.
    :param float p_value: p-value of the hypothesis that the draws are from exp(tau Q).
    :param int draws: number of draws used.
    :param int dimension: number of coordinates used.
    """

    squared: float
    p_value: float
    draws: int
    dimension: int


def ksd(
    mcmc: MCMC,
    sites: Sequence[str] | None = None,
    draws: int = 200,
    chain: int = 0,
    bootstraps: int = 1000,
    seed: int = 0,
) -> KSD:
    """
    Compute the kernel Stein discrepancy between draws and exp(tau Q), with the latents frozen at
    their last values and gradients on all data; see :mod:`pyro_aeb.diagnostics.stein`. Computes one
    gradient on all data per draw.

    If the latents or the temperature changed during the draws, these are from other targets, and
    the test detects that. Coordinates that never move, such as weights that pruning holds at zero,
    are conditioned on.

    :param MCMC mcmc: a run of an AEBKernel that keeps all its sampled sites, whose chain is in this
        process.
    :param sites: names of the sites whose coordinates the kernel uses, by default all.
    :param int draws: largest number of draws to use, evenly spaced.
    :param int chain: number of the chain.
    :param int bootstraps: number of bootstrap samples.
    :param int seed: seed of the bootstrap.
    :returns: the discrepancy and its p-value.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws, the chain is not in this process, or the number
        of data in a DataLoader is not known.
    :raises ValueError: if a sampled site is not kept, ``sites`` names an unknown site, or no
        coordinate moves.
    """
    run = Run(mcmc, "ksd()")
    with freeze(mcmc, chain, "ksd()") as frozen:
        places = frozen.sites
        if missing := sorted(places.keys() - run.sampled.keys()):
            raise ValueError(f"the draws do not hold {missing}, expected all sampled sites: save=")
        if unknown := sorted(set(sites or ()) - places.keys()):
            raise ValueError(f"sites names {unknown}, expected some of {sorted(places)}")
        chosen = np.unique(np.linspace(0, run.draws - 1, draws).round().astype(int))
        row = chain if run.chains > 1 else 0
        kept = {name: torch.as_tensor(run.sampled[name][row][chosen]) for name in places}
        points = flatten_draws(frozen, kept).to(frozen.structure.device)
        gradients = compute_scores(frozen, points)
    used = [place for name, place in places.items() if sites is None or name in sites]
    x, score = (
        np.concatenate([value[:, place].double().cpu().numpy() for place in used], axis=1)
        for value in (points, gradients)
    )
    moving = x.std(0) > 0.0
    if not moving.any():
        raise ValueError(f"none of {x.shape[1]} coordinates moves, expected draws that differ")
    x, score = x[:, moving], score[:, moving]
    squared, p_value = stein_test(x, score, bootstraps, np.random.default_rng(seed))
    return KSD(squared, p_value, *x.shape)


def stein_test(
    x: Array, score: Array, bootstraps: int, generator: np.random.Generator
) -> tuple[float, float]:
    """
    Return the squared discrepancy and its p-value.

    :param x: draws in their order, shape (n, d), every coordinate of which moves.
    :param score: gradient of the log density at each draw, shape (n, d).
    """
    scale = x.std(0)
    matrix = stein_matrix(x / scale, score * scale)
    count = len(x)
    flip = 0.5 / max(_autocorrelation_time(x / scale), 1.0)
    signs = _signs(bootstraps, count, flip, generator)
    null = np.einsum("bi,ij,bj->b", signs, matrix, signs, optimize=True) / count**2
    squared = float(matrix.mean())
    return squared, float((1 + (null >= squared).sum()) / (1 + bootstraps))


def stein_matrix(x: Array, score: Array) -> Array:
    r"""
    Return :math:`s_x \cdot s_y k + s_x \cdot \nabla_y k + s_y \cdot \nabla_x k + \nabla_x \cdot
    \nabla_y k` of all pairs of draws, with k the inverse multiquadric; shape (n, n).
    """
    d = x.shape[1]
    x = x - x.mean(0)
    inner, across = x @ x.T, x @ score.T  # never (n, n, d) numbers at once
    size, along = np.diag(inner), np.diag(across)
    squared = np.maximum(size[:, None] + size - 2.0 * inner, 0.0)
    base = 1.0 + squared / d
    # k = base^(-1/2), grad_x k = -base^(-3/2) (x - y) / d, grad_y k = -grad_x k
    slope = base**-1.5 / d
    mixed = along[:, None] + along - across - across.T  # (x - y) . (s_x - s_y)
    trace = d * slope - 3.0 * base**-2.5 * squared / d**2
    return (score @ score.T) * base**-0.5 + slope * mixed + trace


def _autocorrelation_time(x: Array) -> float:
    """Return the largest integrated autocorrelation time of a coordinate, in draws."""
    some = x[:, np.unique(np.linspace(0, x.shape[1] - 1, 50).astype(int))]
    return float(len(x) / np.nanmin(effective_size(some[None])))


def _signs(count: int, length: int, flip: float, generator: np.random.Generator) -> Array:
    """Draw Markov chains of signs that change with probability ``flip``, shape (count, length)."""
    changes = np.where(generator.random((count, length)) < flip, -1.0, 1.0)
    changes[:, 0] = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    return np.cumprod(changes, axis=1)


def flatten_draws(frozen: FrozenChain, draws: Mapping[str, Tensor]) -> Tensor:
    """Return draws, site name to constrained values of shape (n, ...), as positions (n, D)."""
    count = len(next(iter(draws.values())))
    values = ({name: value[i] for name, value in draws.items()} for i in range(count))
    return torch.stack([frozen.structure.flatten(draw) for draw in values])


def compute_scores(frozen: FrozenChain, points: Tensor) -> Tensor:
    """Compute the gradient of tau Q on all data at positions of shape (n, D)."""
    tau, latents = frozen.numbers.inverse_temperature, frozen.latents
    plates = {name: (size, size) for name, (size, _) in frozen.structure.plates.items()}
    structure = replace(frozen.structure, plates=plates)
    model, adaptation = frozen.chain.posterior.model, frozen.kernel.adaptation
    posterior = Posterior(model, structure, adaptation=adaptation)
    total, weight = torch.zeros_like(points), 0
    with whole_plates():
        for batch, count in _all_batches(frozen, plates):
            gradients = [posterior.evaluate(point, latents, batch).gradient for point in points]
            total += count * torch.stack(gradients)
            weight += count
    return total * (tau / weight)


def _all_batches(
    frozen: FrozenChain, plates: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[Batch, int]]:
    """Yield batches that together hold all data, each with its number of data."""
    source, device = frozen.chain.data.arguments, frozen.structure.device
    indices = {name: torch.arange(size, device=device) for name, (size, _) in plates.items()}
    if source.sizes is None:
        yield frozen.next_batch()._replace(indices=indices), 1
        return
    if not source.sizes:
        raise RuntimeError(
            "the number of data in the DataLoader is not known, expected a dataset with a length"
        )
    source.close()  # so that the next batch is the first of an epoch
    seen, size = 0, min(source.sizes)
    while seen < size:
        batch = frozen.next_batch()._replace(indices=indices)
        count = max(leading_lengths(batch.arguments))
        seen += count
        yield batch, count
