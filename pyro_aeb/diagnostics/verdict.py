# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One call that looks at a run and says in plain words what is wrong with it, and what to do."""

from __future__ import annotations

from pyro.infer import MCMC

from pyro_aeb.diagnostics.agreement import agreement
from pyro_aeb.diagnostics.deltas import collapse_finding
from pyro_aeb.diagnostics.findings import Verdict
from pyro_aeb.diagnostics.flips import pruning_finding
from pyro_aeb.diagnostics.kinetics import temperature_finding
from pyro_aeb.diagnostics.mixing import mixing
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.diagnostics.settling import SETTLED, settled


def check(mcmc: MCMC, quiet: bool = False) -> Verdict:
    """
    Looks at what a run has recorded, prints a verdict and returns it::

        verdict = aeb.check(mcmc)
        assert verdict.ok, verdict

    Sites that are sampled get R-hat and effective sample sizes; learned latents, which are point
    estimates on their way, get the residual of their equations and the agreement of their paths
    between chains. Besides it looks at the temperature, at collapsed deltas, and at pruning. No
    model is run; :func:`~pyro_aeb.diagnostics.gradient_noise.noise_ratio`,
    :func:`~pyro_aeb.diagnostics.halving.step_halving` and
    :func:`~pyro_aeb.diagnostics.stein.ksd` do that and find what a run's own record does not
    show.

    :param MCMC mcmc: :class:`pyro.infer.MCMC` or :class:`pyro_aeb.MCMC` with an AEBKernel, after a
        run that has ended, was cut short, or was put back from a checkpoint.
    :param bool quiet: whether to print nothing.
    :raises TypeError: if ``mcmc`` is no run of an AEBKernel.
    :raises RuntimeError: if it has no draws.
    """
    run = Run(mcmc, "check()")
    findings = [settled(run), agreement(run), collapse_finding(run)] if run.learns else []
    drifting = any(f.check == SETTLED and f.severity == "warning" for f in findings)
    findings += mixing(run, latents_settled=not drifting)
    findings += [temperature_finding(run)]
    if (pruning := pruning_finding(run)) is not None:
        findings.append(pruning)
    verdict = Verdict(str(run), tuple(findings))
    if not quiet:
        print(verdict)
    return verdict
