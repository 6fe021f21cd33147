# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The warnings of tuning in warm-up."""

from __future__ import annotations

from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.tuning.report import CURE


def tuning_finding(run: Run) -> Finding | None:
    """Return the warnings of tuning as a finding; None where all settings were given."""
    if run.tuning is None:
        return None
    if not run.tuning:
        return Finding("tuning", "good", "settings were chosen in warm-up")
    found, cures = zip(*(message.split(CURE, 1) for message in run.tuning), strict=True)
    return Finding("tuning", "warning", "; ".join(found), "", "; ".join(cures))
