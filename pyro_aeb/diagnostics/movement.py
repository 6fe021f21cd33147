# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains that do not move, draws that only change their sign, and acceptance rates: faults that make
an effective sample size look large.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.testing.linear import Array

ACCEPTANCE = "acceptance_rate"
"""Statistic of transitions that may refuse a step."""

MIN_ACCEPTANCE = 0.5
MAX_ACCEPTANCE = 0.95
MIN_DRAWS = 10
"""Number of draws below which nothing is said about movement."""

ALTERNATION = -0.9
"""Autocorrelation of successive draws at or below which a coordinate alternates."""


def movement_findings(run: Run) -> list[Finding]:
    """Return findings on the acceptance rate, on chains that are stuck, and on alternating ones."""
    findings = [acceptance_finding(run), _stuck(run), _alternation(run)]
    return [finding for finding in findings if finding is not None]


def acceptance_finding(run: Run) -> Finding | None:
    """Return the acceptance rate as a finding, None if the transition accepts every step."""
    rates = run.stats.get(ACCEPTANCE)
    if rates is None:
        return None
    expected = "0.65 to 0.9"
    if run.draws < MIN_DRAWS:
        return Finding("acceptance", "note", f"not tested: too few draws, {run.draws}")
    means = np.nan_to_num(rates.astype(np.float64)).mean(1)
    least, mean = float(means.min()), float(means.mean())
    found = f"{mean:.2f}" + (f", in chain {means.argmin()} {least:.2f}" if len(means) > 1 else "")
    if least < MIN_ACCEPTANCE:
        cure = "a smaller step_size: the step is too large for the curvature"
        return Finding("acceptance", "warning", found, expected, cure)
    if mean > MAX_ACCEPTANCE:
        cure = "nothing is wrong; a larger step_size and fewer leapfrogs would cost less"
        return Finding("acceptance", "note", found, expected, cure)
    return Finding("acceptance", "good", found, expected)


def moving(draws: Array) -> Array:
    """
    Return which coordinates change from draw to draw in some chain.

    :param draws: of shape (chains, draws, coordinates).
    """
    some: Array = np.any(_moves(draws), axis=0)
    return some


def _moves(draws: Array) -> Array:
    """Return which coordinates move, shape (chains, coordinates)."""
    moves: Array = np.any(draws != draws[:, :1], axis=1)
    return moves


def _stuck(run: Run) -> Finding | None:
    if run.draws < MIN_DRAWS:
        return None
    pruned = run.prunes_every is not None
    sites = {name: _stuck_chains(v, pruned) for name, v in run.sampled.items() if v.size}
    sites = {name: stuck for name, stuck in sites.items() if stuck.any()}
    if not sites:
        return None
    name, stuck = max(sites.items(), key=lambda site: site[1].mean())
    chains = np.flatnonzero(stuck.any(1))
    where = "" if run.chains == 1 else f" in {_list(chains)}"
    if ACCEPTANCE in run.stats:
        cure = "a smaller step_size: every step is refused"
    else:
        cure = (
            "a larger step_size, or float64: steps are lost in the rounding of the weights, or "
            "the model's density does not depend on them"
        )
    return Finding(
        "draws: movement",
        "warning",
        f"no draw differs from the first in {stuck[chains].any(0).sum()} of {stuck.shape[1]} "
        f"coordinates of site {name!r}{where}: the chain is stuck, and neither R-hat nor an "
        "effective sample size means anything there",
        "draws that move",
        cure,
    )


def _stuck_chains(values: Array, pruned: bool) -> Array:
    """
    Return which coordinates are stuck, shape (chains, coordinates). A zero or one that all chains
    share is a constant of the support where the rest of the site moves, as in a Cholesky factor;
    zeros may be pruned.
    """
    draws = values.reshape(*values.shape[:2], -1)
    moves, first = _moves(draws), draws[:, 0]
    still = ~moves.any(0) & (first == first[0]).all(0)
    constant = still & ((first[0] == 0.0) | (first[0] == 1.0)) & moves.any()
    return ~moves & ~constant & ~(pruned & (first == 0.0))


def _list(chains: Iterable[int]) -> str:
    numbers = [str(chain) for chain in chains]
    return f"chain{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _alternation(run: Run) -> Finding | None:
    if run.draws < MIN_DRAWS:
        return None
    least = {name: _lag_one(values) for name, values in run.sampled.items() if values.size}
    name = min(least, key=lambda name: least[name], default=None)
    if name is None or least[name] > ALTERNATION:
        return None
    return Finding(
        "draws: alternation",
        "warning",
        f"successive draws of site {name!r} have autocorrelation {least[name]:.2f}: they change "
        "sides and keep their distance from the mean, so means look exact and variances are not",
        f"autocorrelation above {ALTERNATION}",
        "another step_size or number of leapfrogs, or one more or less in steps_per_draw, "
        "thinning: a step takes the weights to the opposite side",
    )


def _lag_one(values: Array) -> float:
    """Return the least autocorrelation at lag one of the coordinates that move."""
    draws = values.reshape(*values.shape[:2], -1).astype(np.float64)
    draws = draws - draws.mean(1, keepdims=True)
    variance = (draws * draws).sum((0, 1))
    product = (draws[:, 1:] * draws[:, :-1]).sum((0, 1))
    return float(np.min(product[variance > 0.0] / variance[variance > 0.0], initial=np.inf))
