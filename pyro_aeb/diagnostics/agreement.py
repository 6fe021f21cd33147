# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Whether chains have learned the same latents. Their paths are those of point estimates: this is no
R-hat, and says nothing of a posterior. It says whether chains that started apart went to the same
fixed point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from pyro_aeb.diagnostics.batch_means import FALSE_ALARM, batch_means
from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Array, Run
from pyro_aeb.diagnostics.settling import LEAST, wandering


class Agreement(NamedTuple):
    """
    One latent over all chains, in the second half of their draws.

    :param str latent: its name.
    :param means: of every chain's path.
    :param float spread: the standard deviation of these.
    :param float expected: what it is for chains with one fixed point.
    :param bool agrees: whether the spread is that, by an F test at a false-alarm rate of
        1 % for all latents together.
    """

    latent: str
    means: tuple[float, ...]
    spread: float
    expected: float
    agrees: bool


def agreements_of(run: Run) -> list[Agreement]:
    """
    Every learned latent that moves. The variance expected of a chain's mean is the larger of that
    of ten batch means, and that of the autoregression of
    :func:`~pyro_aeb.diagnostics.settling.wandering`, whose memory of 1/omega steps batches can be
    too short for.
    """
    half = run.draws // 2
    paths = [(n, path[:, half:]) for n, path in run.learned.items() if np.ptp(path) > 0.0]
    omega = run.steps * run.omega[:, half:].astype(np.float64)
    if run.chains < 2 or run.draws < LEAST or omega[:, 1:].min() <= 0.0:
        return []
    found = []
    for name, path in paths:
        variance = float(np.mean([_variance(own, w) for own, w in zip(path, omega, strict=True)]))
        means = path.mean(1)
        ratio = means.var(ddof=1) / max(variance, 1e-300)
        limit = stats.f.isf(FALSE_ALARM / len(paths), run.chains - 1, 9 * run.chains)
        found.append(
            Agreement(
                latent=name,
                means=tuple(map(float, means)),
                spread=float(means.std(ddof=1)),
                expected=variance**0.5,
                agrees=bool(ratio <= limit),
            )
        )
    return found


def _variance(path: Array, omega: Array) -> float:
    """Of the mean of a path that has settled."""
    length = float(omega[1:].sum())  # in units of the memory
    share = 2.0 / length * (1.0 + np.expm1(-length) / length)
    return max(float(stats.sem(batch_means(path)) ** 2), wandering(path, omega) ** 2 * float(share))


def agreement(run: Run) -> Finding:
    """The same in words."""
    check = "learned latents: chains agree"
    if run.chains < 2:
        return Finding(
            check,
            "note",
            "cannot be told from one chain",
            "at least 2 chains from different starts",
            "num_chains=4",
        )
    found = agreements_of(run)
    if not found:
        return Finding(check, "note", "nothing to compare: no latent moves, or too few draws")
    apart = [one for one in found if not one.agrees]
    if not apart:
        names = ", ".join(one.latent for one in found[:4])
        return Finding(check, "good", f"the paths of {names} end in one place in all chains")
    worst = max(apart, key=lambda one: one.spread / max(one.expected, 1e-300))
    values = ", ".join(f"{mean:.3g}" for mean in worst.means)
    return Finding(
        check,
        "warning",
        f"chains have gone to different values of {', '.join(one.latent for one in apart[:4])}: "
        f"{worst.latent} is {values}",
        f"chains within about {worst.expected:.2g} of one another",
        "if they still drift, run longer; else there are several fixed points: start colder "
        "(an inverse temperature below 1 that rises), with larger omega in warm-up, and read the "
        "chains one by one, not pooled",
    )
