# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Collapse of learned prior inclusion probabilities to 0 or 1, which equation (7) cannot undo."""

from __future__ import annotations

from typing import Any

from pyro_aeb.diagnostics.findings import Finding, join_names
from pyro_aeb.diagnostics.recorded_run import Run, read_run


def collapse(mcmc: Any) -> list[str]:
    """
    Return the names of the delta sites that have collapsed at the end of some chain; see
    :class:`~pyro_aeb.errors.CollapseWarning`.

    :param mcmc: a run of an AEBKernel, finished or interrupted, or its trace.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws.
    """
    return read_run(mcmc, "collapse()").collapsed


def collapse_finding(run: Run) -> Finding:
    """Return the collapsed delta sites as a finding."""
    check, sites = "delta collapse", run.collapsed
    if not sites:
        return Finding(check, "good", "no learned delta has collapsed to 0 or 1")
    names = join_names(
        f"{site} ({run.learned[site][:, -1].min():.2g})" if site in run.learned else site
        for site in sites
    )
    return Finding(
        check,
        "warning",
        f"collapsed: {names}. All weights of their sites are in one component, and equation (7) "
        "cannot leave 0 or 1",
        "a delta inside (0, 1)",
        "a Beta prior with a > 1 (b > 1 at the other end), a smaller or more slowly growing omega, "
        "or a larger v0 / smaller v1, so that the components overlap more",
    )
