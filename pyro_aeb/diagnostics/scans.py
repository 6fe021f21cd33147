# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How often the scans of a Gibbs sampler accept what they propose."""

from __future__ import annotations

import numpy as np

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.testing.linear import Array

MIN_ACCEPTED = 0.5
"""Smallest share of accepted proposals: below it, scans change less than they cost."""

STUCK = 0.1
"""The share of accepted flips at or below which a chain keeps its gammas."""

FEW = 10
"""The fewest flips of a chain by which it is told to be stuck."""


def scans_finding(run: Run) -> Finding | None:
    """Return the accepted flips and sigmas as a finding; None where latents are not drawn."""
    check = "latents: drawn in scans"
    if "flips_proposed" not in run.stats:
        return None
    names = {"flips": "flips of gamma", "sigmas": "moves of sigma"}
    counts = {kind: _counts(run, kind) for kind in names}
    found = " and ".join(
        f"{accepted.sum():.0f} of {proposed.sum():.0f} {names[kind]} accepted"
        for kind, (proposed, accepted) in counts.items()
        if proposed.sum()
    )
    proposed, accepted = counts["flips"]
    stuck = (proposed >= FEW) & (accepted <= STUCK * proposed)
    if stuck.any():
        return Finding(
            check,
            "warning",
            f"{found}; in chain {', '.join(map(str, np.flatnonzero(stuck)))} nearly all flips are "
            "rejected",
            "some flips accepted in every chain",
            "gammas stay as they are, so the inclusion probabilities are those of the start: the "
            "curvature of the likelihood is not that where the chain is. It is taken by scans 1, "
            "2, 4, 8 and so on of warm-up, so use at least twice the warm-up; if that does not "
            "help, Gibbs(flips=False)",
        )
    low = [
        kind
        for kind, (proposed, accepted) in counts.items()
        if accepted.sum() < MIN_ACCEPTED * proposed.sum()
    ]
    if low:
        return Finding(
            check,
            "warning",
            found,
            f"{100 * MIN_ACCEPTED:.0f} % or more",
            "the likelihood is far from quadratic in the weights, or its curvature has changed "
            "since warm-up: use more warm-up steps, or Gibbs(flips=False)",
        )
    if proposed.sum() and not proposed.min():
        found += f"; none proposed in chain {int(np.argmin(proposed))}"
    return Finding(check, "good", found or "no flip of gamma was proposed")


def _counts(run: Run, kind: str) -> tuple[Array, Array]:
    """Return the numbers of proposals after warm-up and of those accepted, shape (chains,)."""

    def count(end: str) -> Array:
        path = run.stats[f"{kind}_{end}"]
        before = path[:, 0] if path.shape[1] > 1 else 0.0  # at the first draw
        counted: Array = path[:, -1] - before
        return counted

    return count("proposed"), count("accepted")
