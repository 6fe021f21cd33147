# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Tests of whether the learned latents have settled.

A latent moves by :math:`\omega_k (\tilde\theta - \theta)` per step. Its move from one draw to the
next, divided by the sum of omega in between, is the mean residual over all steps between the two.
If the latent has settled, the residual has mean 0. :func:`sa_residual` tests that in the second
half of the draws, chain by chain, by the t statistic of ten batch means. A latent drifts if

- the mean differs from 0, at a false-alarm rate of 1 % for all latents and chains together, and
- it exceeds the standard deviation with which a settled latent wanders about its fixed point at
  this omega, estimated from the path as that of a first-order autoregression.

With large omega a latent stays close to the solution of its equation even while the weights that it
follows still drift. Where the sum of omega is 20 or more, two autocorrelation times of the latent
per batch, it therefore also drifts if the batch means have a trend, by Kendall's tau at the same
rate, and it has moved further than it wanders.

The tests take batches as independent. Weights whose autocorrelation time is more than a twentieth
of the run make the latents wander with them, and such a run may be reported as drifting: it is too
short for its weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pyro.infer import MCMC
from scipy import stats

from pyro_aeb.diagnostics.batch_means import BATCHES, FALSE_ALARM, critical_value
from pyro_aeb.diagnostics.findings import Finding, join_names
from pyro_aeb.diagnostics.recorded_run import Run, read_run
from pyro_aeb.testing.linear import Array
from pyro_aeb.testing.monte_carlo import batch_means, means_of_batches

MIN_WANDER = 1e-12
"""Smallest standard deviation of wandering: a collapsed delta moves by less."""

LONG = 2.0 * BATCHES
"""Sum of omega above which the batches of a settled path are nearly independent."""

MIN_DRAWS = 4 * BATCHES
"""Fewest draws of a chain that are tested."""


class Residual(NamedTuple):
    """
    Residual of one learned latent in one chain, over the second half of its draws.

    :param str latent: name of the latent.
    :param int chain: number of the chain.
    :param float value: mean of the latent's path.
    :param float gap: mean residual, the distance from the solution of the latent's equation.
    :param float error: standard error of the gap.
    :param float wander: standard deviation of a settled latent at this omega.
    :param float shift: mean of the last batch minus that of the first.
    :param float weight: sum of omega; a gap closes by about 1 - exp(-weight).
    :param bool drifts: whether the latent drifts; see :mod:`pyro_aeb.diagnostics.settling`.
    """

    latent: str
    chain: int
    value: float
    gap: float
    error: float
    wander: float
    shift: float
    weight: float
    drifts: bool


def sa_residual(mcmc: MCMC) -> list[Residual]:
    r"""
    Test whether the learned latents have settled, by the mean residual
    :math:`\tilde\theta - \theta` in the second half of the draws. The latents are every delta and
    sigma squared, and the mean of every site's inclusion probabilities.

    :param MCMC mcmc: a run of an AEBKernel, finished or interrupted.
    :returns: the residual of every latent and chain, in this order. Empty if nothing is learned, if
        omega is 0, or if there are fewer than 40 draws.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws.
    """
    return compute_residuals(read_run(mcmc, "sa_residual()"))


def compute_residuals(run: Run) -> list[Residual]:
    """Return the residuals of :func:`sa_residual`."""
    if run.draws < MIN_DRAWS:
        return []
    half = run.draws // 2
    chains = [
        (name, chain, path[half:], run.omega_sums[chain, half:])
        for name, paths in run.learned.items()
        if np.ptp(paths) > 0.0
        for chain, path in enumerate(paths)
    ]
    return [_residual(*c, tests=len(chains)) for c in chains if c[-1][1:].min() > 0.0]


def _residual(name: str, chain: int, path: Array, omega: Array, tests: int) -> Residual:
    """
    Compute and test the residual of one latent of one chain.

    :param path: path of the latent, shape (draws,).
    :param omega: sum of omega over the steps of every draw, shape (draws,).
    :param int tests: number of such tests.
    """
    gap, error = map(float, batch_means(np.diff(path) / omega[1:], BATCHES))
    wander = max(wandering_sd(path, omega), MIN_WANDER)
    # Half of the false alarms for each of two tests.
    off = abs(gap) > max(critical_value(BATCHES - 1, 2 * tests) * error, wander)
    levels, weight = means_of_batches(path, BATCHES), float(omega[1:].sum())
    shift = float(levels[-1] - levels[0])
    trend = stats.kendalltau(np.arange(BATCHES), levels).pvalue < FALSE_ALARM / (2 * tests)
    follows = weight >= LONG and trend and abs(shift) > wander
    return Residual(
        latent=name,
        chain=chain,
        value=float(path.mean()),
        gap=gap,
        error=error,
        wander=wander,
        shift=shift,
        weight=weight,
        drifts=bool(off or follows),
    )


def wandering_sd(path: Array, omega: Array) -> float:
    """
    Return the standard deviation of the stationary first-order autoregression with decay rate omega
    whose moves have the variance of the path's moves, without their trend.
    """
    rate = float(omega[1:].mean())
    lag = int(np.clip(round(1.0 / rate), 1, max(len(path) // BATCHES, 1)))
    moves = path[lag:] - path[:-lag]
    return float(moves.std() / np.sqrt(2.0 * -np.expm1(-lag * rate)))


def settling_finding(run: Run) -> Finding:
    """Return the residuals of the latents as a finding."""
    check = "learned latents: settled"
    if not run.learned:
        return Finding(check, "note", "no learned latent is kept", "", "name some in save=")
    if not (run.omega > 0.0).any():
        return Finding(check, "good", "frozen: omega is 0 at all draws")
    if run.draws < MIN_DRAWS:
        found, expected = f"not tested: too few draws, {run.draws}", f"{MIN_DRAWS} draws a chain"
        return Finding(check, "note", found, expected, "run longer")
    residuals = compute_residuals(run)
    drifting = [r for r in residuals if r.drifts]
    names = join_names(r.latent for r in drifting or residuals)
    if not drifting:
        return Finding(
            check,
            "good",
            f"the mean residual of {names} is 0 within its error, or within the "
            "wandering that omega allows, in the second half of the draws (t test on ten batch "
            f"means); {_residual_norms(run)}",
        )
    worst = max(drifting, key=lambda r: abs(r.gap) / max(r.error, 1e-300))
    verb = "drifts" if names == worst.latent else "drift"
    return Finding(
        check,
        "warning",
        f"{names} still {verb}: in the second half of the draws of chain {worst.chain}, "
        f"{worst.latent} moved by {worst.shift:+.2g}; its mean is {worst.value:.3g} and its "
        f"equation asks for {worst.value + worst.gap:.3g} (a residual of {worst.gap:+.2g} +- "
        f"{worst.error:.1g}); {_residual_norms(run)}",
        f"a residual of 0 within its error, or within +-{worst.wander:.1g}, by which a settled "
        "latent wanders at this omega",
        _cure(run, worst),
    )


def _cure(run: Run, worst: Residual) -> str:
    last = float(run.omega[worst.chain, -1])
    omega = (
        f"omega is {last:.2g} at the last step and its sum over the second half of the draws is "
        f"{worst.weight:.2g}; "
    )
    if worst.weight < 3.0:
        more = int(np.ceil(run.draws / 2 * 3.0 / worst.weight))
        return omega + (
            f"a gap closes by a factor of 20 for a sum of 3, so run longer (about {more:,} more "
            f"draws of {run.steps} step(s), if omega fell no further), use more warm-up steps, or "
            "a larger or more slowly falling omega"
        )
    return omega + (
        "that is enough to close a gap, so the weights that the latents follow still drift: the "
        "weights have not settled either. Run longer, use more warm-up steps, and take draws "
        "further apart"
    )


def _residual_norms(run: Run) -> str:
    """Describe the norms of the residuals at the draws."""
    half = run.draws // 2
    norms = ", ".join(
        f"{name.removeprefix('sa_residual_')} {np.nanmedian(values[:, half:]):.2g}"
        for name, values in run.stats.items()
        if name.startswith("sa_residual_") and np.isfinite(values[:, half:]).any()
    )
    return f"median residual of a single step: {norms}" if norms else "no residual was recorded"
