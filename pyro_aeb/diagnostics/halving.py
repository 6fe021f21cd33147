# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
How much of what a run says is due to the size of its steps.

The chain goes on from where it stands, once with its own step size and once with half of it and
twice as many steps, its latents held still. The bias of the weights' law is proportional to the
step size, to first order, so the difference between the two is about half the bias of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import MCMC
from scipy import stats

from pyro_aeb.diagnostics.batch_means import BATCHES, critical
from pyro_aeb.diagnostics.frozen_chain import Frozen

BURN_IN = 0.25
"""Share of both runs that is left out, in which the finer one forgets the coarser one's law."""


class StepHalving(NamedTuple):
    """
    A moment of one site under a step size and under half of it.

    :param str site: a site.
    :param str moment: ``"mean"`` or ``"variance"``, averaged over its coordinates.
    :param float coarse: at the run's step size.
    :param float fine: at half of it.
    :param float error: Monte Carlo standard error of the difference.
    :param float bias: estimate of the bias of the run: 2 (coarse - fine), over the mean of the
        coordinates' standard deviations (means), or over the variance (variances).
    :param bool differs: whether the difference is significant, by Welch's t test on batch means at
        a false-alarm rate of 1 % for all sites and moments together.
    """

    site: str
    moment: str
    coarse: float
    fine: float
    error: float
    bias: float
    differs: bool


def step_halving(mcmc: MCMC, steps: int = 2000, chain: int = 0) -> list[StepHalving]:
    """
    Moments of every site at the run's step size and at half of it; see
    :mod:`pyro_aeb.diagnostics.halving`. Costs three times ``steps`` steps. The bias that it finds
    is that of a step of finite size and, where the variance falls in proportion, of the
    minibatch's noise, which smaller steps reduce as well.

    The errors are those of ten batch means and hold if the chain forgets within a tenth of
    ``steps``: slow directions are not seen. Without a difference, ``error`` says how large a bias
    could have been missed.

    :param MCMC mcmc: a run of an AEBKernel, whose chain is in this process; see
        ``Frozen``.
    :param int steps: of the coarser run, at least 100.
    :param int chain: which.
    :raises NonFiniteError: if these steps run away.
    """
    if steps < 100:
        raise ValueError(f"steps is {steps}, expected at least 100")
    with Frozen(mcmc, chain, "step_halving()") as frozen:
        step_size, start = frozen.numbers.step_size, frozen.chain.state
        coarse = _moments(frozen, steps, step_size)
        frozen.chain.state = start
        fine = _moments(frozen, 2 * steps, step_size / 2.0)
        sites = {name: place for name, place in frozen.sites.items() if name != "all"}
    found = []
    for site, place in sites.items():
        one, other = (_of_site(moments, place) for moments in (coarse, fine))
        scale = float(np.sqrt(other["variance"].mean()))
        units = {"mean": scale, "variance": scale**2}
        for moment, unit in units.items():
            found.append(_compared(site, moment, one[moment], other[moment], unit, 2 * len(sites)))
    return found


def _moments(frozen: Frozen, steps: int, step_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and mean squares of every coordinate in ten batches, shape (10, D) each."""
    skipped = int(BURN_IN * steps)
    length = (steps - skipped) // BATCHES
    chain: Iterator[tuple[Any, Any]] = frozen.steps(steps, step_size)
    for _ in range(steps - BATCHES * length):
        next(chain)
    centre = frozen.state.position.double()
    means, squares = [], []
    for _ in range(BATCHES):
        total, square = torch.zeros_like(centre), torch.zeros_like(centre)
        for _ in range(length):
            _, state = next(chain)
            offset = state.position.double() - centre
            total += offset
            square.addcmul_(offset, offset)
        means.append(total / length + centre)
        squares.append(square / length - (total / length) ** 2)  # the variance within
    chain.close()  # type: ignore[attr-defined]
    return torch.stack(means).cpu().numpy(), torch.stack(squares).cpu().numpy()


def _of_site(moments: tuple[np.ndarray, np.ndarray], place: slice) -> dict[str, np.ndarray]:
    """A site's moments in ten batches, averaged over its coordinates."""
    means, within = moments[0][:, place], moments[1][:, place]
    spread = within + (means - means.mean(0)) ** 2
    return {"mean": means.mean(1), "variance": spread.mean(1)}


def _compared(
    site: str, moment: str, coarse: np.ndarray, fine: np.ndarray, unit: float, tests: int
) -> StepHalving:
    errors = np.array([stats.sem(coarse), stats.sem(fine)])
    error = float(np.hypot(*errors))
    difference = float(coarse.mean() - fine.mean())
    shares = errors**4 / (BATCHES - 1)
    degrees = float(error**4 / shares.sum()) if shares.sum() else float(BATCHES - 1)
    return StepHalving(
        site=site,
        moment=moment,
        coarse=float(coarse.mean()),
        fine=float(fine.mean()),
        error=error,
        bias=2.0 * difference / unit if unit else 0.0,
        differs=abs(difference) > critical(degrees, tests) * error,
    )
