# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Bias of a run due to the size of its steps.

The chain is continued from its current state, once with its own step size and once with half of it
and twice as many steps, with the latents frozen. To first order the bias of the law of the weights
is proportional to the step size, so the difference between the two runs is about half the bias.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pyro.infer import MCMC

from pyro_aeb.diagnostics.batch_means import BATCHES, critical_value
from pyro_aeb.diagnostics.frozen_chain import FrozenChain, freeze
from pyro_aeb.testing.linear import Array
from pyro_aeb.testing.monte_carlo import replicates

BURN_IN = 0.25
"""Share of both runs that is discarded, while the finer one forgets the coarser one's law."""


class StepHalving(NamedTuple):
    """
    A moment of one site at the run's step size and at half of it.

    :param str site: name of the site.
    :param str moment: ``"mean"`` or ``"variance"``, averaged over the site's coordinates.
    :param float coarse: the moment at the run's step size.
    :param float fine: the moment at half of it.
    :param float error: Monte Carlo standard error of the difference.
    :param float bias: estimated bias of the run, 2 (coarse - fine), relative to the standard
        deviation of the coordinates (means) or to their variance (variances).
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
    Compare the moments of every site at the run's step size and at half of it; see
    :mod:`pyro_aeb.diagnostics.halving`. Takes three times ``steps`` steps. The bias found is that
    of steps of finite size and, where the variance falls in proportion, of minibatch noise, which
    smaller steps reduce as well.

    Errors are those of ten batch means and hold if the autocorrelation time is well below a tenth
    of ``steps``: slow directions go unnoticed. If there is no difference, ``error`` says how large
    a bias could have been missed.

    :param MCMC mcmc: a run of an AEBKernel, whose chain is in this process.
    :param int steps: number of steps of the coarser run, at least 100.
    :param int chain: number of the chain.
    :returns: for every site its mean and its variance.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws, or the chain is not in this process.
    :raises ValueError: if there are too few steps.
    :raises NonFiniteError: if the steps diverge.
    """
    if steps < 100:
        raise ValueError(f"steps is {steps}, expected at least 100")
    with freeze(mcmc, chain, "step_halving()") as frozen:
        step_size, start = frozen.numbers.step_size, frozen.chain.state
        coarse = _moments_of_batches(frozen, steps, step_size)
        frozen.chain.state = start
        fine = _moments_of_batches(frozen, 2 * steps, step_size / 2.0)
        sites = frozen.sites
    results = []
    for site, place in sites.items():
        coarse_moments, fine_moments = (_site_moments(m, place) for m in (coarse, fine))
        scale = float(np.sqrt(fine_moments["variance"].mean()))
        for moment, unit in (("mean", scale), ("variance", scale**2)):
            batches = coarse_moments[moment], fine_moments[moment]
            results.append(_compare(site, moment, *batches, unit, tests=2 * len(sites)))
    return results


def _moments_of_batches(frozen: FrozenChain, steps: int, step_size: float) -> tuple[Array, Array]:
    """Return means and variances of every coordinate within ten batches, shape (10, D) each."""
    skipped = int(BURN_IN * steps)
    length = (steps - skipped) // BATCHES
    chain = frozen.steps(steps, step_size)
    for _ in range(steps - BATCHES * length):
        next(chain)
    centre = frozen.state.position.double()
    means, variances = [], []
    for _ in range(BATCHES):
        total, square = torch.zeros_like(centre), torch.zeros_like(centre)
        for _ in range(length):
            _, state = next(chain)
            offset = state.position.double() - centre
            total += offset
            square.addcmul_(offset, offset)
        means.append(total / length + centre)
        variances.append(square / length - (total / length) ** 2)
    chain.close()  # type: ignore[attr-defined]
    return torch.stack(means).cpu().numpy(), torch.stack(variances).cpu().numpy()


def _site_moments(moments: tuple[Array, Array], place: slice) -> dict[str, Array]:
    """Return a site's moments in ten batches, averaged over its coordinates."""
    means, within = moments[0][:, place], moments[1][:, place]
    spread = within + (means - means.mean(0)) ** 2
    return {"mean": means.mean(1), "variance": spread.mean(1)}


def _compare(
    site: str, moment: str, coarse: Array, fine: Array, unit: float, tests: int
) -> StepHalving:
    """Compare the batches of a moment, shape (10,) each, by Welch's t test."""
    (coarse_mean, coarse_error), (fine_mean, fine_error) = map(replicates, (coarse, fine))
    errors = np.array([coarse_error, fine_error])
    error = float(np.hypot(*errors))
    difference = float(coarse_mean - fine_mean)
    shares = errors**4 / (BATCHES - 1)
    degrees = float(error**4 / shares.sum()) if shares.sum() else float(BATCHES - 1)
    return StepHalving(
        site=site,
        moment=moment,
        coarse=float(coarse_mean),
        fine=float(fine_mean),
        error=error,
        bias=2.0 * difference / unit if unit else 0.0,
        differs=abs(difference) > critical_value(degrees, tests) * error,
    )
