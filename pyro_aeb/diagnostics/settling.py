# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Whether the learned latents have settled.

A latent moves by :math:`\omega_k (\tilde\theta - \theta)` a step. Added up from one draw to the
next and divided by what omega adds up to, this is the mean residual between the two; no step is
left out. Where the latent has settled it has mean 0. :func:`sa_residual` tests that in the second
half of the draws, chain by chain, by the t statistic of ten batch means, and calls a latent
drifting if

- the mean differs from 0, at a false-alarm rate of 1 % for all latents and chains together, and
- it exceeds the standard deviation with which a latent that has settled wanders about its fixed
  point at this omega, estimated from the path itself: that of a first-order autoregression.

Where omega is large, a latent is never far from what its equation asks for and yet follows weights
that are themselves on their way. So where omega adds up to 20 or more, two memories of the latent a
batch, it also drifts if the means of the batches have a trend, by Kendall's tau at the same rate,
and it came further than it wanders.

The tests believe that batches are independent. Weights that take longer than a twentieth of the
run to forget make the latents wander with them, and such a run can be called drifting: it is too
short for its weights then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pyro.infer import MCMC
from scipy import stats

from pyro_aeb.diagnostics.batch_means import BATCHES, FALSE_ALARM, batch_means, critical
from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Array, Run

SETTLED = "learned latents: settled"
"""The check's name."""

NOTHING = 1e-12
"""The least that counts as wandering: what is left of a collapsed delta moves by less."""

LONG = 2.0 * BATCHES
"""What omega has to add up to for the batches of a settled path to be nearly independent."""

LEAST = 4 * BATCHES
"""The fewest draws of a chain that are judged."""


class Residual(NamedTuple):
    """
    One learned latent of one chain, in the second half of its draws.

    :param str latent: its name.
    :param int chain: number of the chain.
    :param float value: the mean of its path.
    :param float gap: the mean of its residual: how far its equation asks it to move.
    :param float error: the standard error of the gap.
    :param float wander: the standard deviation that omega lets a settled latent have.
    :param float shift: how far its last batch is above its first.
    :param float weight: what omega adds up to; a gap closes by about 1 - exp(-weight).
    :param bool drifts: whether it is still on its way; see
        :mod:`pyro_aeb.diagnostics.settling`.
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
    The mean residual :math:`\tilde\theta - \theta` of every learned latent in the second half of
    the draws, and whether it has settled: delta and sigma squared, and the mean of every site's
    inclusion probabilities.

    :param MCMC mcmc: a run of an AEBKernel, finished or interrupted.
    :returns: for every latent and chain, in this order. Empty if nothing is learned, if omega is 0,
        or if there are fewer than 40 draws.
    :raises TypeError: if ``mcmc`` is no run of an AEBKernel.
    :raises RuntimeError: if it has no draws.
    """
    return residuals_of(Run(mcmc, "sa_residual()"))


def residuals_of(run: Run) -> list[Residual]:
    """:func:`sa_residual` of a run that has been read."""
    if run.draws < LEAST:
        return []
    paths = [(name, path) for name, path in run.learned.items() if np.ptp(path) > 0.0]
    half = run.draws // 2
    found = []
    for name, path in paths:
        for chain, own in enumerate(path):
            omega = run.steps * run.omega[chain, half:].astype(np.float64)
            if omega[1:].min() > 0.0:
                tests = len(paths) * run.chains
                found.append(_residual(name, chain, own[half:], omega, tests))
    return found


def _residual(name: str, chain: int, path: Array, omega: Array, tests: int) -> Residual:
    """
    :param path: of one latent of one chain, shape (draws,).
    :param omega: what it adds up to in the steps of every draw.
    :param int tests: how many such tests are made.
    """
    moves = np.diff(path) / omega[1:]
    means = batch_means(moves)
    gap, error = float(means.mean()), float(stats.sem(means))
    wander = max(wandering(path, omega), NOTHING)
    # Half of the false alarms for each of two tests.
    asks = abs(gap) > max(critical(len(means) - 1, 2 * tests) * error, wander)
    levels, weight = batch_means(path), float(omega[1:].sum())
    shift = float(levels[-1] - levels[0])
    trend = stats.kendalltau(np.arange(len(levels)), levels).pvalue < FALSE_ALARM / (2 * tests)
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
        drifts=bool(asks or follows),
    )


def wandering(path: Array, omega: Array) -> float:
    """
    The standard deviation of the stationary first-order autoregression that forgets at the rate
    omega and moves as far as the path does, its trend taken off.

    :param path: shape (draws,).
    :param omega: what it adds up to in the steps of every draw, shape (draws,).
    """
    rate = float(omega[1:].mean())
    lag = int(np.clip(round(1.0 / rate), 1, max(len(path) // BATCHES, 1)))
    moves = path[lag:] - path[:-lag]
    return float(moves.std() / np.sqrt(2.0 * -np.expm1(-lag * rate)))


def settled(run: Run) -> Finding:
    """What :func:`sa_residual` says of a run, in words."""
    check = SETTLED
    if not run.learned:
        return Finding(check, "note", "no learned latent is kept", "", "name some in save=")
    if not (run.omega > 0.0).any():
        return Finding(check, "good", "frozen: omega is 0 at all draws")
    if run.draws < LEAST:
        return Finding(
            check,
            "note",
            f"cannot be told from {run.draws} draws",
            f"at least {LEAST} draws of every chain",
            "run longer",
        )
    found = residuals_of(run)
    drifting = [one for one in found if one.drifts]
    if not drifting:
        return Finding(
            check,
            "good",
            f"the mean residual of {_names(found)} is 0 within its error, or within the "
            "wandering that omega allows, in the second half of the draws (t test on ten batch "
            f"means); {_scale(run)}",
        )
    worst = max(drifting, key=lambda one: abs(one.gap) / max(one.error, 1e-300))
    return Finding(
        check,
        "warning",
        f"{_names(drifting)} still drift{'s' if len(_set(drifting)) == 1 else ''}: in the second "
        f"half of the draws of chain {worst.chain}, {worst.latent} moved by {worst.shift:+.2g}; it "
        f"stands at {worst.value:.3g} on average and its equation asks for "
        f"{worst.value + worst.gap:.3g} (a residual of {worst.gap:+.2g} +- {worst.error:.1g}); "
        f"{_scale(run)}",
        f"a residual of 0 within its error, or within +-{worst.wander:.1g}, by which omega lets a "
        "latent wander that has settled",
        _cure(run, worst),
    )


def _cure(run: Run, worst: Residual) -> str:
    last = float(run.omega[worst.chain, -1])
    advice = (
        f"omega is {last:.2g} at the last step and adds up to {worst.weight:.2g} in the second "
        "half of the draws; "
    )
    if worst.weight < 3.0:
        more = int(np.ceil(run.draws / 2 * 3.0 / worst.weight))
        return advice + (
            f"a gap closes by a factor of 20 in a weight of 3, so run longer (about {more:,} "
            f"more draws of {run.steps} step(s), if omega fell no further), give more warm-up, or "
            "use a larger or more slowly falling omega"
        )
    return advice + (
        "that is enough to close a gap, so what the latents follow is itself on the move: the "
        "weights have not settled either. Run longer, give more warm-up, and take draws further "
        "apart"
    )


def _scale(run: Run) -> str:
    """The norms of the residuals at the draws, in words."""
    half = run.draws // 2
    norms: dict[str, Any] = {
        name.removeprefix("sa_residual_"): float(np.nanmedian(values[:, half:]))
        for name, values in run.stats.items()
        if name.startswith("sa_residual_") and np.isfinite(values[:, half:]).any()
    }
    listed = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    return f"median residual of a single step: {listed}" if listed else "no residual was recorded"


def _set(found: list[Residual]) -> list[str]:
    return list(dict.fromkeys(one.latent for one in found))


def _names(found: list[Residual]) -> str:
    names = _set(found)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
