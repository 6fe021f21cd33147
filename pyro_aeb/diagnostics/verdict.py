# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""All checks of a recorded run, in one call."""

from __future__ import annotations

from typing import Any

from pyro_aeb.diagnostics.agreement import agreement_finding
from pyro_aeb.diagnostics.deltas import collapse_finding
from pyro_aeb.diagnostics.findings import Verdict
from pyro_aeb.diagnostics.flips import pruning_finding
from pyro_aeb.diagnostics.kinetics import temperature_finding
from pyro_aeb.diagnostics.mixing import mixing_findings
from pyro_aeb.diagnostics.movement import movement_findings
from pyro_aeb.diagnostics.recorded_run import read_run
from pyro_aeb.diagnostics.scans import scans_finding
from pyro_aeb.diagnostics.settling import settling_finding
from pyro_aeb.diagnostics.tuned import tuning_finding


def check(mcmc: Any, quiet: bool = False) -> Verdict:
    """
    Check what a run has recorded, print a verdict (in a notebook, a table) and return it::

        verdict = aeb.check(mcmc)
        assert verdict.ok, verdict

    Sampled sites get R-hat and effective sample sizes; learned latents, which are point estimates,
    get the residuals of their equations and the agreement of their paths between chains. The
    temperature, the acceptance rate, chains that do not move, collapsed deltas, pruning and what
    tuning in warm-up has found are checked, too. The model is not run;
    :func:`~pyro_aeb.diagnostics.gradient_noise.noise_ratio`,
    :func:`~pyro_aeb.diagnostics.halving.step_halving` and
    :func:`~pyro_aeb.diagnostics.stein.ksd` run it, and find errors that the record does not show.

    :param mcmc: :class:`pyro.infer.MCMC` or :class:`pyro_aeb.MCMC` with an AEBKernel, after a run
        that has finished, was interrupted, or was restored from a checkpoint; or a trace of it, of
        :func:`~pyro_aeb.to_arviz`, :func:`~pyro_aeb.open_trace` or a file.
    :param bool quiet: whether to print nothing.
    :returns: the verdict.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws.
    """
    run = read_run(mcmc, "check()")
    findings, latents_settled = [], True
    if run.learns:
        settling = settling_finding(run)
        latents_settled = settling.severity != "warning"
        findings = [settling, agreement_finding(run), collapse_finding(run)]
    if (scans := scans_finding(run)) is not None:
        findings.append(scans)
    findings += movement_findings(run)
    findings += mixing_findings(run, latents_settled)
    findings += [temperature_finding(run)]
    optional = pruning_finding(run), tuning_finding(run)
    findings += [finding for finding in optional if finding is not None]
    verdict = Verdict(str(run), tuple(findings))
    if not quiet:
        verdict.show()
    return verdict
