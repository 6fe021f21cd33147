# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Every row of the table, by name."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pyro_aeb import SGHMC, SGLD, to_arviz

from . import classical, recommended, sampling
from .data import Problem, Size, simulate
from .horseshoe import HorseshoeSettings, horseshoe
from .metrics import Fit, score

#: The plain chains under the Normal prior have 900 directions on which the data are silent, where
#: the prior's curvature is 1. There SGLD relaxes in 1 / step size = 2000 steps and SGHMC in
#: friction / step size = 200. A chain worth m independent draws adds Monte Carlo error of about
#: 900 / m to the test MSE of the exact ridge. So both run longer than the sparse models.
SGLD_LENGTH = 5
SGHMC_LENGTH = 2

FIGURES = (
    "mse mae mse_last precision_12 recall_12 precision_123 recall_123 selected beta1 beta2 beta3 "
    "coverage_beta1 coverage_beta2 coverage_beta3 coverage_zeros interval_length seconds "
    "ess rhat sigma delta collapsed"
).split()
"""The numbers that a fit gives."""

PLAIN_SGLD = SGLD(step_size=5e-4)
PLAIN_SGHMC = SGHMC(step_size=5e-4, friction=0.1)


@dataclass(frozen=True)
class Protocol:
    """
    Every setting that, if changed, makes other rows.

    :param Size size: of the simulated data.
    :param int steps: length of every SG-MCMC chain, warm-up included; plain SGLD and SGHMC get
        :data:`SGLD_LENGTH` and :data:`SGHMC_LENGTH` times as many.
    :param HorseshoeSettings horseshoe: chain lengths of NUTS.
    """

    size: Size = Size()
    steps: int = 60_000
    horseshoe: HorseshoeSettings = HorseshoeSettings()


#: A protocol that takes seconds, to see that everything runs. Its figures mean nothing.
SMOKE = Protocol(
    size=Size(train=40, test=50, features=20),
    steps=500,
    horseshoe=HorseshoeSettings(chains=2, warmup=10, draws=20, tree_depth=4),
)


@dataclass(frozen=True)
class Method:
    """
    One row.

    :param str label: its name in the table.
    :param fit: from the data, the replicate's seed and the protocol to the outcome.
    :param settings: what decides the outcome beside data and seed, as text. It is stored with every
        row, so that rows of different settings are never averaged.
    """

    label: str
    fit: Callable[[Problem, int, Protocol], Fit]
    settings: Callable[[Protocol], str] = lambda protocol: ""


def _sparse(label: str, settings: sampling.SparseSettings) -> Method:
    return Method(
        label,
        lambda problem, seed, protocol: sampling.sparse_regression(
            problem, settings, protocol.steps, seed
        ),
        lambda protocol: f"{protocol.steps} steps, {settings}",
    )


def _plain(label: str, transition: SGLD | SGHMC, length: int) -> Method:
    return Method(
        label,
        lambda problem, seed, protocol: sampling.gaussian_regression(
            problem, transition, length * protocol.steps, seed
        ),
        lambda protocol: f"{length * protocol.steps} steps, {transition}",
    )


def _recommended(problem: Problem, seed: int, protocol: Protocol) -> Fit:
    X, y = sampling.tensors(problem)
    result = recommended.choose_then_sample(X, y, seed, _share(protocol))
    rho = to_arviz(result.sample).adaptation["beta_rho"].values[0]
    samples = result.sample.get_samples()
    notes = {"sigma": result.sigma, "delta": float(samples["delta"].mean())}
    selected = sampling.wide_inclusion(rho, recommended.SAMPLE.v0, recommended.V1) > 0.5
    return sampling.summarise(problem, samples["beta"], selected, notes)


def _share(protocol: Protocol) -> float:
    """The share of the recommended steps that fits into the protocol's chains."""
    return min(protocol.steps / recommended.STEPS, 1.0)


CHANGES: dict[str, dict[str, Any]] = {
    "sigma": {"nu": 1e6, "lam": None},  # held at its estimate from the training rows
    "v0": {"v0": recommended.CHOOSE.v0},
    "tau": {"inverse_temperature": recommended.CHOOSE.tau},
}

METHODS: dict[str, Method] = {
    "oracle": Method(
        "least squares on the true three (oracle)",
        lambda problem, seed, protocol: classical.least_squares(problem, problem.signals),
    ),
    "oracle-two": Method(
        "least squares on β1, β2 alone (oracle)",
        lambda problem, seed, protocol: classical.least_squares(problem, problem.signals[:2]),
    ),
    "ridge": Method(
        "exact ridge posterior", lambda problem, seed, protocol: classical.ridge(problem)
    ),
    "sgld": _plain(f"SGLD, Normal prior, {SGLD_LENGTH} times as long", PLAIN_SGLD, SGLD_LENGTH),
    "sghmc": _plain(
        f"SGHMC, Normal prior, {SGHMC_LENGTH} times as long", PLAIN_SGHMC, SGHMC_LENGTH
    ),
    "lasso": Method("lasso by CV", lambda problem, seed, protocol: classical.lasso(problem, seed)),
    "relaxed-lasso": Method(
        "relaxed lasso by CV",
        lambda problem, seed, protocol: classical.relaxed_lasso(problem, seed),
    ),
    "mcp": Method("MCP by CV", lambda problem, seed, protocol: classical.mcp(problem, seed)),
    "horseshoe": Method(
        "regularised horseshoe, NUTS",
        lambda problem, seed, protocol: horseshoe(problem, seed, protocol.horseshoe),
        lambda protocol: str(protocol.horseshoe),
    ),
    "sgld-em": _sparse("SGLD-EM, paper's settings", replace(sampling.PAPER, weight=1.0)),
    "sgld-sa": _sparse("SGLD-SA, paper's settings", sampling.PAPER),
    "recommended": Method(
        "SGHMC-SA, choose cold, then sample",
        _recommended,
        lambda protocol: f"{_share(protocol):.3g} of {recommended.CHOOSE} and {recommended.SAMPLE}",
    ),
}


#: The paper's settings with one, two or three of the recommended changes; not run by default.
ABLATION: dict[str, Method] = {
    f"paper{''.join(f' +{change}' for change in changes)}": _sparse(
        " + ".join(["SGLD-SA, paper's settings", *changes]),
        replace(sampling.PAPER, **{k: v for c in changes for k, v in CHANGES[c].items()}),
    )
    for size in range(1, len(CHANGES) + 1)
    for changes in itertools.combinations(CHANGES, size)
}
ALL = METHODS | ABLATION


def settings_of(name: str, protocol: Protocol) -> str:
    """The text that tells the rows of one set of settings from those of another."""
    return "; ".join(filter(None, [str(protocol.size), ALL[name].settings(protocol)]))


def run_one(name: str, seed: int, protocol: Protocol) -> dict[str, float]:
    """
    Simulates a replicate, fits one method to it on one thread, and scores it.

    :param str name: a key of :data:`ALL`.
    :param int seed: the replicate.
    :param Protocol protocol: sizes and lengths.
    :returns: of :data:`FIGURES` those of :func:`metrics.score`, the method's notes, and ``seconds``
        of processor time that the fit took.
    """
    torch.set_num_threads(1)
    problem = simulate(seed, protocol.size)
    if name == "mcp":  # numba compiles skglm at its first use: not part of the fit
        classical.mcp(simulate(0, Size(train=20, test=1, features=5)), 0)
    with threadpool_limits(1):
        started = time.process_time()
        fit = ALL[name].fit(problem, seed, protocol)
        seconds = time.process_time() - started
    if not np.all(np.isfinite(fit.coefficients)):
        raise FloatingPointError(f"{name} on seed {seed} gave an estimate that is not finite")
    return {**score(problem, fit), "seconds": seconds, **fit.notes}
