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
    proposed, _ = counts["flips"]
    if proposed.sum() and not proposed.min():
        found += f"; none proposed in chain {int(np.argmin(proposed))}"
    return Finding(check, "good", found or "no flip of gamma was proposed")


def _counts(run: Run, kind: str) -> tuple[Array, Array]:
    """Return the numbers of proposals and of those accepted at the last draw, shape (chains,)."""
    proposed, accepted = (run.stats[f"{kind}_{end}"][:, -1] for end in ("proposed", "accepted"))
    return proposed, accepted
