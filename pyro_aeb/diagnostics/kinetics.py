# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The kinetic temperature: how far weights move in a step against how far they should.

At every draw the transition compares the mean square of its momentum, or of its step, with what
that is at the target temperature for small steps; see
:meth:`~pyro_aeb.transitions.base.HasStatistics.statistics`. The ratio is 1 where all is well. Above
1 the chain is too hot: its step is large for the curvature, or the gradient's noise adds to what is
injected. Below 1 it is too cold: not warm yet, or the injected noise is too small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.diagnostics.batch_means import BATCHES, critical, mean_of
from pyro_aeb.diagnostics.findings import Finding, Severity
from pyro_aeb.diagnostics.frozen_chain import Frozen
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.transitions import Evaluated, statistics_of

NAME = "kinetic_temperature"
TOLERANCE = 0.1
"""How far from 1 the ratio may be: the relative error of the variance that it stands for."""


class Temperature(NamedTuple):
    """
    :param str site: a site, or ``"all"`` for the whole position.
    :param float ratio: kinetic temperature over its target, averaged over some steps.
    :param float error: its standard error.
    """

    site: str
    ratio: float
    error: float


def temperature(mcmc: MCMC, steps: int = 200, chain: int = 0) -> list[Temperature]:
    """
    The kinetic temperature of every site, over some further steps from where the run stands, with
    its latents held still. The run itself is put back where it was.

    :param MCMC mcmc: a run whose chain is in this process; see
        ``Frozen``.
    :param int steps: at least 10; each costs what a step of the run does.
    :param int chain: of several, which.
    :returns: first of all weights together, then of every site.
    :raises TypeError: if the transition has no such figure.
    """
    if steps < BATCHES:
        raise ValueError(f"steps is {steps}, expected at least {BATCHES}")
    with Frozen(mcmc, chain, "temperature()") as frozen:
        transition = frozen.kernel.transition
        found: dict[str, list[torch.Tensor]] = {name: [] for name in frozen.sites}
        for before, state in frozen.steps(steps):
            for name, place in frozen.sites.items():
                parts = _part(before, place), _part(state, place)
                figures = statistics_of(transition, *parts, frozen.numbers, _NoTarget(transition))
                if NAME not in figures:
                    raise _no_figure(transition)
                found[name].append(figures[NAME])
    series = {name: torch.stack(values).cpu().numpy() for name, values in found.items()}
    means = {name: mean_of(values) for name, values in series.items()}
    return [Temperature(name, mean.mean, mean.error) for name, mean in means.items()]


def _no_figure(transition: Any) -> TypeError:
    return TypeError(
        f"{transition!r} has no statistics(before, state, numbers) with {NAME!r}; give it one, as "
        "pyro_aeb.transitions.base.HasStatistics says"
    )


class _NoTarget:
    """Of some coordinates alone there is no Q; figures that ask for it are others than this one."""

    step = 0

    def __init__(self, transition: Any) -> None:
        self._transition = transition

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        raise _no_figure(self._transition)

    whole = batch


def _part(state: Any, place: slice) -> Any:
    """A state's part that belongs to some coordinates; what has no coordinates stays whole."""
    size = state.position.shape[-1]
    parts = (v[..., place] if v.dim() and v.shape[-1] == size else v for v in state)
    return type(state)(*parts)


def temperature_finding(run: Run) -> Finding:
    """The temperature at the draws of a run, in words."""
    check = "temperature"
    values = run.stats.get(NAME)
    if values is None:
        what = f"{run.kernel.transition!r} does not report {NAME!r}"
        return Finding(check, "note", what, "", "give the transition a statistics() method")
    half = values[:, run.draws // 2 :]
    if half.shape[1] < BATCHES or not np.isfinite(half).all():
        return Finding(check, "note", f"cannot be told from {run.draws} draws")
    mean = mean_of(half)
    said = f"{mean.mean:.3f} +- {mean.error:.3f} of its target"
    off = abs(mean.mean - 1.0)
    limit = critical(mean.degrees, 1) * mean.error
    if off <= max(TOLERANCE, limit):
        tight = limit <= TOLERANCE
        severity: Severity = "good" if tight else "note"
        return Finding(
            check, severity, said + ("" if tight else ", too noisy to tell 10 % off"), "1 +- 0.1"
        )
    hot = (
        "too hot: the step is large for the curvature, or the minibatch's own noise adds to the "
        "injected one. aeb.diagnostics.noise_ratio(mcmc) tells which. Use a smaller step_size, "
        "larger minibatches, or SGHMC's gradient_noise; temperature(mcmc) tells which site"
    )
    cold = (
        "too cold: the injected noise is smaller than the temperature asks for. Look at SGHMC's "
        "gradient_noise, which is taken off it, at the scale of the noise in a transition of your "
        "own (aeb.testing.check_transition), and whether warm-up was long enough for a schedule"
    )
    return Finding(check, "warning", said, "1 +- 0.1", hot if mean.mean > 1.0 else cold)
