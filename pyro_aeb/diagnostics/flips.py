# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Stability of the set of pruned weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Run, read_run
from pyro_aeb.testing.linear import Array

MAX_FLIPS = 0.05
"""Largest share of the pruned weights that may change from one draw to the next."""


def pruning_flips(mcmc: Any) -> Array | None:
    """
    Return how many weights became zero or nonzero since the previous draw, shape (chains, draws).
    A weight that changes and changes back between two draws is not counted.

    :param mcmc: a run of an AEBKernel, finished or interrupted, or its trace.
    :returns: the counts; None if the run does not prune.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws.
    """
    return read_run(mcmc, "pruning_flips()").stats.get("pruning_flips")


def pruning_finding(run: Run) -> Finding | None:
    """Return the stability of pruning, in the second half of the draws, as a finding."""
    check, flips = "pruning", run.stats.get("pruning_flips")
    if flips is None:
        return None
    every = run.prunes_every
    if every is not None and run.steps % every != 0:
        return Finding(
            check,
            "warning",
            f"draws are {run.steps} steps apart and pruning is done every {every} steps, "
            "so draws are taken between two prunings, when weights are not zero",
            "draws at multiples of `every`",
            f"steps_per_draw={every}, or a multiple of it",
        )
    half = run.draws // 2
    sparsity = run.stats["sparsity"][:, half:]
    share, changed = float(sparsity.mean()), float(flips[:, half:].mean())
    found = (
        f"{100 * share:.1f} % of the weights are zero, and {changed:.3g} of them change from one "
        "draw to the next"
    )
    pruned = share * run.weights
    if not pruned or changed <= MAX_FLIPS * pruned:
        return Finding(check, "good", found)
    moving = " (the target sparsity still changes)" if np.ptp(sparsity) > 0.01 else ""
    return Finding(
        check,
        "warning",
        f"{found}, {100 * changed / pruned:.0f} % of the pruned{moving}",
        f"at most {100 * MAX_FLIPS:.0f} %: weights that stay pruned",
        "the draws are of many networks, not of one: freeze=True keeps pruned weights at zero, and "
        "ProbabilityPruning ranks weights by averaged probabilities, not by their current size; or "
        "anneal (a rising inverse_temperature), so that weights fluctuate less",
    )
