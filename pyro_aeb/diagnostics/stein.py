# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Kernel Stein discrepancy: whether draws have the law exp(tau Q), from the draws and the gradient of
tau Q at each, without knowing its normalising constant [1, 2].

The kernel is the inverse multiquadric :math:`k(x, y) = (1 + \|x - y\|^2 / d)^{-1/2}` of the
coordinates, each divided by the standard deviation of its draws, with d their number. The p-value
is that of a wild bootstrap [3], whose signs stay the same for about as long as the draws remember.

It says most in up to some ten coordinates. In more, all pairs of draws are about equally far apart,
the kernel sees only the variances' sum, and errors in single directions go unnoticed: above 50 a
small p-value still means what it says, a large one next to nothing. Choose sites then; kernels of a
part of the coordinates give a test that is as valid, of that part given all others. It is also
blind to modes that no draw has reached.

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
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.data.arguments import Batch, leading_lengths
from pyro_aeb.diagnostics.frozen_chain import Frozen
from pyro_aeb.diagnostics.recorded_run import Array, Run
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.testing.objective import whole_plates


class KSD(NamedTuple):
    """
    :param float squared: the squared discrepancy, a V-statistic.
    :param float p_value: of the hypothesis that the draws are of exp(tau Q).
    :param int draws: how many were used.
    :param int dimension: coordinates that the kernel sees.
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
    The kernel Stein discrepancy between draws and exp(tau Q) with the latents held at their last
    values, with scores on all data; see :mod:`pyro_aeb.diagnostics.stein`.

    Where the latents moved while the draws were made, or the temperature did, the draws are of
    other targets, and this is what it finds. What never moves, as a weight that pruning holds at
    zero, is taken as given. Costs as many gradients on all data as draws.

    :param MCMC mcmc: a run of an AEBKernel that keeps all its sampled sites, whose chain is in this
        process; see ``Frozen``.
    :param sites: whose coordinates the kernel sees; by default all.
    :param int draws: how many of the chain's, evenly spaced, are used at most.
    :param int chain: which.
    :param int bootstraps: how many.
    :param int seed: of the bootstrap.
    :raises ValueError: if a sampled site is not kept, or ``sites`` names one that is none.
    """
    run = Run(mcmc, "ksd()")
    with Frozen(mcmc, chain, "ksd()") as frozen:
        blocks = {name: place for name, place in frozen.sites.items() if name != "all"}
        if missing := sorted(blocks.keys() - run.sampled.keys()):
            raise ValueError(f"the draws do not hold {missing}, expected all sampled sites: save=")
        if unknown := sorted(set(sites or ()) - blocks.keys()):
            raise ValueError(f"sites names {unknown}, expected some of {sorted(blocks)}")
        chosen = np.unique(np.linspace(0, run.draws - 1, draws).round().astype(int))
        row = chain if run.chains > 1 else 0
        kept = {name: torch.as_tensor(run.sampled[name][row][chosen]) for name in blocks}
        points = positions(frozen, kept).to(frozen.structure.device)
        gradients = scores(frozen, points)
    places = [place for name, place in blocks.items() if sites is None or name in sites]
    x, score = (
        np.concatenate([value[:, place].double().cpu().numpy() for place in places], axis=1)
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
    The squared discrepancy and its p-value.

    :param x: draws in their order, shape (n, d), every coordinate of which moves.
    :param score: the gradient of the log density at each, shape (n, d).
    :param int bootstraps: how many.
    :param generator: of the bootstrap's signs.
    """
    scale = x.std(0)
    matrix = stein_matrix(x / scale, score * scale)
    count = len(x)
    flip = 0.5 / max(_memory(x / scale), 1.0)
    signs = _signs(bootstraps, count, flip, generator)
    null = np.einsum("bi,ij,bj->b", signs, matrix, signs, optimize=True) / count**2
    squared = float(matrix.mean())
    return squared, float((1 + (null >= squared).sum()) / (1 + bootstraps))


def stein_matrix(x: Array, score: Array) -> Array:
    r"""
    :math:`s_x \cdot s_y k + s_x \cdot \nabla_y k + s_y \cdot \nabla_x k + \nabla_x \cdot \nabla_y
    k` for all pairs of draws, with k the inverse multiquadric; shape (n, n).

    :param x: draws, shape (n, d).
    :param score: shape (n, d).
    """
    d = x.shape[1]
    x = x - x.mean(0)
    inner, across = x @ x.T, x @ score.T  # pairs of draws at once, never (n, n, d) numbers
    size, along = np.diag(inner), np.diag(across)
    squared = np.maximum(size[:, None] + size - 2.0 * inner, 0.0)
    base = 1.0 + squared / d
    # k = base^(-1/2), grad_x k = -base^(-3/2) (x - y) / d, grad_y k = -grad_x k
    slope = base**-1.5 / d
    mixed = along[:, None] + along - across - across.T  # (x - y) . (s_x - s_y)
    trace = d * slope - 3.0 * base**-2.5 * squared / d**2
    return (score @ score.T) * base**-0.5 + slope * mixed + trace


def _memory(x: Array) -> float:
    """The largest integrated autocorrelation time of a coordinate, in draws, by ArviZ."""
    import arviz  # imported on use: it takes as long as Pyro
    import xarray

    some = x[:, np.unique(np.linspace(0, x.shape[1] - 1, 50).astype(int))]
    found: Any = arviz.ess(xarray.Dataset({"x": (("chain", "draw", "d"), some[None])}))
    return float(len(x) / np.nanmin(np.asarray(found["x"])))


def _signs(count: int, length: int, flip: float, generator: np.random.Generator) -> Array:
    """Chains of signs that change with some probability from one to the next."""
    changes = np.where(generator.random((count, length)) < flip, -1.0, 1.0)
    changes[:, 0] = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    return np.cumprod(changes, axis=1)


def positions(frozen: Frozen, draws: Mapping[str, Tensor]) -> Tensor:
    """
    Draws as flat positions, shape (n, D).

    :param Frozen frozen: of the model.
    :param draws: constrained values of all sampled sites, each with a leading axis of length n.
    """
    count = len(next(iter(draws.values())))
    rows = [{name: value[i] for name, value in draws.items()} for i in range(count)]
    return torch.stack([frozen.structure.flatten(row) for row in rows])


def scores(frozen: Frozen, points: Tensor) -> Tensor:
    """
    The gradient of tau Q on all data, shape (n, D).

    :param Frozen frozen: says what the latents, tau and the data are.
    :param Tensor points: positions, shape (n, D).
    """
    tau, latents = frozen.numbers.inverse_temperature, frozen.latents
    plates = {name: (size, size) for name, (size, _) in frozen.structure.plates.items()}
    posterior = Posterior(frozen.kernel.model, replace(frozen.structure, plates=plates))
    total, weight = torch.zeros_like(points), 0
    with whole_plates():
        for batch, data in _all_data(frozen, plates):
            rows = [posterior.evaluate(point, latents, batch).gradient for point in points]
            total += data * torch.stack(rows)
            weight += data
    return total * (tau / weight)


def _all_data(frozen: Frozen, plates: Mapping[str, tuple[int, int]]) -> Iterator[tuple[Batch, int]]:
    """Batches that hold all data once, and how many data each holds."""
    source, device = frozen.chain.data.arguments, frozen.structure.device
    indices = {name: torch.arange(size, device=device) for name, (size, _) in plates.items()}
    if source.sizes is None:
        yield frozen.next_batch()._replace(indices=indices), 1
        return
    if not source.sizes:
        raise RuntimeError(
            "how many data the DataLoader holds is not known, expected a dataset with a length"
        )
    source.close()  # so that the next batch is the first of an epoch
    seen, size = 0, min(source.sizes)
    while seen < size:
        batch = frozen.next_batch()._replace(indices=indices)
        data = max(leading_lengths(batch.arguments))
        seen += data
        yield batch, data
