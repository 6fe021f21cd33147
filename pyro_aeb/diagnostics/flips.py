# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Whether pruning has made up its mind."""

from __future__ import annotations

import numpy as np
from pyro.infer import MCMC

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Array, Run

MANY = 0.05
"""Share of the pruned weights that may change from one draw to the next."""


def pruning_flips(mcmc: MCMC) -> Array | None:
    """
    How many weights changed from pruned to not, or back, since the draw before; shape (chains,
    draws). What changes and changes back between two draws is not seen.

    :param MCMC mcmc: a run of an AEBKernel, finished or interrupted.
    :returns: None where nothing is pruned.
    :raises TypeError: if ``mcmc`` is no run of an AEBKernel.
    :raises RuntimeError: if it has no draws.
    """
    return Run(mcmc, "pruning_flips()").stats.get("pruning_flips")


def pruning_finding(run: Run) -> Finding | None:
    """What the second half of the draws says of pruning, in words; None without pruning."""
    check, flips = "pruning", run.stats.get("pruning_flips")
    if flips is None:
        return None
    half = run.draws // 2
    zeros = run.stats["sparsity"][:, half:]
    share, moved = float(zeros.mean()), float(flips[:, half:].mean())
    pruning = run.kernel.pruning
    if pruning is not None and run.steps % pruning.every != 0:
        return Finding(
            check,
            "warning",
            f"draws are {run.steps} steps apart and pruning comes every {pruning.every}, so draws "
            "are taken between two prunings, when weights are not zero",
            "draws at multiples of `every`",
            f"steps_per_draw={pruning.every}, or a multiple of it",
        )
    rising = float(np.ptp(zeros))
    said = (
        f"{100 * share:.1f} % of the weights are zero, and {moved:.3g} of them change from a draw "
        "to the next"
    )
    pruned = share * run.weights
    if pruned and moved > MANY * pruned:
        what = " (the target still moves)" if rising > 0.01 else ""
        return Finding(
            check,
            "warning",
            f"{said}, {100 * moved / pruned:.0f} % of the pruned{what}",
            f"at most {100 * MANY:.0f} %: weights that are pruned for good",
            "the draws are of many networks, not of one: freeze=True keeps what is pruned, and "
            "ProbabilityPruning goes by averaged probabilities in place of momentary sizes; or "
            "anneal (a rising inverse_temperature), so that weights shake less",
        )
    return Finding(check, "good", said)
