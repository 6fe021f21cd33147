# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
The kinetic temperature: how far weights move in a step, compared with how far they should.

At every draw the transition compares the mean square of its momentum, or of its step, with its
value at the target temperature in the limit of small steps; see
:meth:`~pyro_aeb.transitions.base.HasStatistics.statistics`. The ratio should be 1. Above 1 the
chain is too hot: its step is large for the curvature, or the noise of the gradient adds to the
injected noise. Below 1 it is too cold: not yet warmed up, or the injected noise is too small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.diagnostics.batch_means import BATCHES, critical_value, mean_with_error
from pyro_aeb.diagnostics.findings import Finding
from pyro_aeb.diagnostics.frozen_chain import freeze
from pyro_aeb.diagnostics.recorded_run import Run
from pyro_aeb.transitions import Evaluated, statistics_of

NAME = "kinetic_temperature"
TOLERANCE = 0.1
"""Largest accepted distance of the ratio from 1: the relative error of the variance it implies."""
EXPLODED = 100.0
"""Ratio at a draw that chance does not make: of one weight alone it has probability 1e-23."""


class Temperature(NamedTuple):
    """
    Kinetic temperature of one site.

    :param str site: name of the site, or ``"all"`` for the whole position.
    :param float ratio: kinetic temperature over its target, averaged over steps.
    :param float error: standard error of the ratio.
    """

    site: str
    ratio: float
    error: float


def temperature(mcmc: MCMC, steps: int = 200, chain: int = 0) -> list[Temperature]:
    """
    Measure the kinetic temperature of every site over further steps, with the latents frozen; see
    :mod:`pyro_aeb.diagnostics.kinetics`. Afterwards the run is restored.

    :param MCMC mcmc: a run of an AEBKernel, whose chain is in this process.
    :param int steps: number of steps, at least 10.
    :param int chain: number of the chain.
    :returns: the temperature of all weights together, then of every site.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel, or its transition does not report a
        kinetic temperature.
    :raises RuntimeError: if the run has no draws, or the chain is not in this process.
    :raises ValueError: if there are too few steps.
    """
    if steps < BATCHES:
        raise ValueError(f"steps is {steps}, expected at least {BATCHES}")
    with freeze(mcmc, chain, "temperature()") as frozen:
        transition, no_target = frozen.kernel.transition, _NoTarget(frozen.kernel.transition)
        places = {"all": slice(None), **frozen.sites}
        ratios: dict[str, list[Tensor]] = {site: [] for site in places}
        for before, after in frozen.steps(steps):
            for site, place in places.items():
                first, last = (_select(frozen.in_units(own), place) for own in (before, after))
                statistics = statistics_of(transition, first, last, frozen.numbers, no_target)
                if NAME not in statistics:
                    raise _no_temperature(transition)
                ratios[site].append(statistics[NAME])
    series = {site: torch.stack(values).cpu().numpy() for site, values in ratios.items()}
    return [Temperature(site, *mean_with_error(values)) for site, values in series.items()]


def _no_temperature(transition: Any) -> TypeError:
    return TypeError(
        f"{transition!r} has no statistics(before, state, numbers) with {NAME!r}; add it as "
        "described in pyro_aeb.transitions.base.HasStatistics"
    )


def _explosion(check: str, values: NDArray[Any]) -> Finding:
    """Return what to say of chains that have left the posterior, though all numbers are finite."""
    chain, draw = np.unravel_index(int(np.nanargmax(values)), values.shape)
    count = int((values > EXPLODED).any(1).sum())
    return Finding(
        check,
        "warning",
        f"{values[chain, draw]:.3g} times its target at draw {draw} of chain {chain}: "
        f"{count} of {len(values)} chains exploded, and their draws are not of the posterior",
        f"at most {EXPLODED:g} at every draw",
        "a smaller step size, or more warm-up if it is the start that is far out. With a learned "
        "width v0 a step grows with it: choose one that is stable at the largest v0",
    )


class _NoTarget:
    """Target of a part of the coordinates, which has no Q: a transition must not evaluate it."""

    step = 0

    def __init__(self, transition: Any) -> None:
        self._transition = transition

    def batch(self, position: Tensor, prior: bool = True) -> Evaluated:
        raise _no_temperature(self._transition)

    whole = batch


def _select(state: Any, place: slice) -> Any:
    """Select some coordinates of a state; fields without coordinates are kept."""
    size = state.position.shape[-1]
    fields = (v[..., place] if v.dim() and v.shape[-1] == size else v for v in state)
    return type(state)(*fields)


def temperature_finding(run: Run) -> Finding:
    """Return the temperature at the draws of a run as a finding."""
    check, expected = "temperature", "1 +- 0.1"
    values = run.stats.get(NAME)
    if values is None:
        found = f"{run.transition} does not report {NAME!r}"
        return Finding(check, "note", found, "", "add a statistics() method to the transition")
    if np.nanmax(values, initial=0.0) > EXPLODED:
        return _explosion(check, values)
    half = values[:, run.draws // 2 :]
    if half.shape[1] < BATCHES or not np.isfinite(half).all():
        return Finding(check, "note", f"not tested: too few draws, {run.draws}")
    mean, error = mean_with_error(half)
    found = f"{mean:.3f} +- {error:.3f} of its target"
    limit = critical_value(BATCHES * run.chains - 1, tests=1) * error
    if abs(mean - 1.0) <= max(TOLERANCE, limit):
        if limit <= TOLERANCE:
            return Finding(check, "good", found, expected)
        return Finding(check, "note", f"{found}, too noisy to detect an error of 10 %", expected)
    hot = (
        "too hot: the step is large for the curvature, or minibatch noise adds to the injected "
        "noise. aeb.diagnostics.noise_ratio(mcmc) tells which. Use a smaller step_size, larger "
        "minibatches, or SGHMC's gradient_noise; temperature(mcmc) tells which site"
    )
    cold = (
        "too cold: the injected noise is smaller than the temperature requires. Look at SGHMC's "
        "gradient_noise, which is subtracted from it, at the scale of the noise in a transition of "
        "your own (aeb.testing.check_transition), and whether warm-up was long enough for a "
        "schedule"
    )
    return Finding(check, "warning", found, expected, hot if mean > 1.0 else cold)
