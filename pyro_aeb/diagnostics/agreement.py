# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Agreement of chains on the learned latents. Their paths are those of point estimates, so this is no
R-hat and says nothing about a posterior: it tests whether chains with different starts have reached
the same fixed point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from pyro_aeb.diagnostics.batch_means import FALSE_ALARM, mean_with_error
from pyro_aeb.diagnostics.findings import Finding, join_names
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.diagnostics.settling import MIN_DRAWS, wandering_sd
from pyro_aeb.testing.linear import Array

NEAR = 0.05
"""Largest range of the chains' means, over their size, that is of no consequence."""


class Agreement(NamedTuple):
    """
    Comparison of the chains on one latent, over the second half of the draws.

    :param means: mean of the path of every chain.
    :param float expected: standard deviation of these means if the chains have one fixed point.
    :param bool agrees: whether their spread is as expected, by an F test at a false-alarm rate of
        1 % for all latents together.
    """

    latent: str
    means: tuple[float, ...]
    spread: float
    expected: float
    agrees: bool

    @property
    def range(self) -> float:
        """The range of the means, over the largest of them."""
        largest = max(map(abs, self.means))
        return (max(self.means) - min(self.means)) / max(largest, 1e-300)


def compare_chains(run: Run) -> list[Agreement]:
    """
    Compare the chains on every learned latent that moves. The expected variance of a chain's mean
    is the larger of two estimates: by ten batch means, and by the autoregression of
    :func:`~pyro_aeb.diagnostics.settling.wandering_sd`, whose autocorrelation time of 1/omega steps
    may exceed a batch.
    """
    half = run.draws // 2
    paths = [(n, path[:, half:]) for n, path in run.learned.items() if np.ptp(path) > 0.0]
    omega = run.omega_sums[:, half:]
    if run.chains < 2 or run.draws < MIN_DRAWS or omega[:, 1:].min() <= 0.0:
        return []
    agreements = []
    for name, path in paths:
        variances = [_variance_of_mean(p, w) for p, w in zip(path, omega, strict=True)]
        variance, means = float(np.mean(variances)), path.mean(1)
        ratio = means.var(ddof=1) / max(variance, 1e-300)
        limit = stats.f.isf(FALSE_ALARM / len(paths), run.chains - 1, 9 * run.chains)
        agreements.append(
            Agreement(
                latent=name,
                means=tuple(map(float, means)),
                spread=float(means.std(ddof=1)),
                expected=variance**0.5,
                agrees=bool(ratio <= limit),
            )
        )
    return agreements


def _variance_of_mean(path: Array, omega: Array) -> float:
    """Return the variance of the mean of a path, shape (draws,), that has settled."""
    length = float(omega[1:].sum())  # in autocorrelation times
    share = 2.0 / length * (1.0 + np.expm1(-length) / length)
    return max(mean_with_error(path)[1] ** 2, wandering_sd(path, omega) ** 2 * float(share))


def agreement_finding(run: Run) -> Finding:
    """Return the agreement of the chains as a finding."""
    check = "learned latents: chains agree"
    if run.chains < 2:
        expected = "at least 2 chains from different starts"
        return Finding(check, "note", "not tested: there is one chain", expected, "num_chains=4")
    agreements = compare_chains(run)
    if not agreements:
        return Finding(check, "note", "not tested: no latent moves, or there are too few draws")
    apart = [a for a in agreements if not a.agrees]
    if not apart:
        names = join_names(a.latent for a in agreements)
        return Finding(check, "good", f"the paths of {names} end at the same place in all chains")
    if all(a.range <= NEAR for a in apart):
        worst = max(apart, key=lambda a: a.range)
        return Finding(
            check,
            "note",
            f"chains differ in {join_names(a.latent for a in apart)} by at most "
            f"{100 * worst.range:.1f} % ({worst.latent}): more than by chance, and too little to "
            "matter",
            f"chains within about {worst.expected:.2g} of one another",
            "run longer, if that small a difference matters",
        )
    apart = [a for a in apart if a.range > NEAR]
    worst = max(apart, key=lambda a: a.spread / max(a.expected, 1e-300))
    values = ", ".join(f"{mean:.3g}" for mean in worst.means)
    return Finding(
        check,
        "warning",
        f"chains have reached different values of {join_names(a.latent for a in apart)}: "
        f"{worst.latent} is {values}",
        f"chains within about {worst.expected:.2g} of one another",
        "if they still drift, run longer; otherwise there are several fixed points: start at a "
        "higher temperature (an inverse temperature below 1 that rises), with larger omega in "
        "warm-up, and read the chains one by one, not pooled",
    )
