# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sparse regression with more features than rows, and nothing set by hand.

    python tutorials/reproduce/nothing_set.py --out results

``AEBKernel(model, adaptation=Gibbs())`` under ``SparsePrior(X, y)`` on data sets of the first
experiment (100 rows, 1000 features, three effects), beside the recipe whose settings were found
by hand, and on sets of the same size without any effect. The seeds are not those of the first
experiment.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common.experiment import command_line, finish
from common.harness import Replicates, run_all
from common.options import new_parser
from common.tables import cell, frame, markdown_table
from sparse_linear import recommended, sampling
from sparse_linear.data import NOISE_VARIANCE, Problem, Size, simulate
from torch import Tensor

import pyro_aeb as aeb

FIGURES = ("mse", "kept", "found", "steps", "warnings", "seconds")
HAND, NOTHING, NOISE = METHODS = (
    "effects; recipe by hand",
    "effects; nothing set",
    "noise; nothing set",
)
FIRST_SEED, DRAWS = 9000, 400


def problem_of(name: str, seed: int, size: Size) -> Problem:
    """The data set of a row."""
    found = simulate(seed, size)
    if name.startswith("effects"):
        return found
    noise = np.random.default_rng(seed).standard_normal((2, max(size.train, size.test)))
    y, y_test = NOISE_VARIANCE**0.5 * noise
    none = np.zeros_like(found.beta)
    return replace(found, beta=none, y=y[: size.train], y_test=y_test[: size.test])


def nothing_set(X: Tensor, y: Tensor, seed: int, draws: int) -> tuple[aeb.MCMC, float]:
    """A run of the kernel as it comes, and the number of its steps."""
    prior = aeb.priors.SparsePrior(X, y)

    def model(X: Tensor, y: Tensor | None = None) -> Tensor:
        beta, sigma = prior.sample("beta")
        with pyro.plate("data", len(X)):
            return pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

    kernel = aeb.AEBKernel(model, adaptation=aeb.Gibbs(), seed=seed)
    mcmc = aeb.MCMC(kernel, draws, draws // 4, disable_progbar=True)
    mcmc.run(X, y)
    return mcmc, float(kernel.chain.step)


def share_of(draws: int) -> float:
    """The share of the recipe's steps that is made: all of them but at smoke size."""
    return min(draws / DRAWS, 1.0)


def run_one(name: str, seed: int, size: Size, draws: int) -> dict[str, float]:
    """The figures of one run."""
    torch.set_num_threads(1)
    problem = problem_of(name, seed, size)
    X, y = sampling.tensors(problem)
    clock = time.process_time()
    told: list[warnings.WarningMessage] = []
    if name == HAND:
        result = recommended.choose_then_sample(X, y, seed, share_of(draws))
        mcmc, steps = result.sample, share_of(draws) * recommended.STEPS
        rho = aeb.to_arviz(mcmc).adaptation["beta_rho"].values[0]
        wide = sampling.wide_inclusion(rho, recommended.SAMPLE.v0, recommended.V1)
    else:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", aeb.TuningWarning)
            mcmc, steps = nothing_set(X, y, seed, draws)
        wide = aeb.inclusion(mcmc)["beta"].probability
    seconds = time.process_time() - clock
    beta = mcmc.get_samples()["beta"].double().numpy()
    kept = np.flatnonzero(np.asarray(wide) > 0.5)
    residual = problem.y_test - problem.X_test @ beta.mean(0)
    return {
        "mse": float(np.mean(residual**2)),
        "kept": float(len(kept)),
        "found": float(np.isin(problem.signals, kept).sum()) if problem.beta.any() else np.nan,
        "steps": steps,
        "warnings": float(sum(issubclass(w.category, aeb.TuningWarning) for w in told)),
        "seconds": seconds,
    }


def settings_of(name: str, size: Size, draws: int) -> str:
    """Return the settings that decide the figures of a row, beside its seed."""
    if name == HAND:
        return f"{size}; {share_of(draws):g} of {recommended.CHOOSE} and {recommended.SAMPLE}"
    return f"{size}; {draws} draws after {draws // 4}"


def report(rows: Sequence[dict[str, str]], command: str) -> str:
    """A table of means and standard errors, and the paired difference in error."""
    table = frame(rows, FIGURES)
    lines = []
    for name in (name for name in METHODS if name in set(table["method"])):
        own = table[table["method"] == name]
        found = "–" if name == NOISE else cell(own["found"].mean(), own["found"].sem())
        lines.append([
            name, str(len(own)), cell(own["mse"].mean(), own["mse"].sem(), 3), found,
            cell(own["kept"].mean(), own["kept"].sem()), f"{own['kept'].max():.0f}",
            f"{own['steps'].median():,.0f}", f"{own['steps'].max():,.0f}",
            f"{(own['warnings'] > 0).sum()}", f"{own['seconds'].median():.0f}",
        ])  # fmt: skip
    header = ["", "sets", "test error", "effects kept", "features kept", "most", "steps, median"]
    header += ["most steps", "runs with warnings", "seconds, median"]
    errors = table.pivot(index="seed", columns="method", values="mse")
    paired = ""
    if {HAND, NOTHING} <= set(errors):
        less = (errors[NOTHING] - errors[HAND]).dropna()
        difference = cell(less.mean(), less.sem(), 3)
        paired = (
            f"\nTest error with nothing set less that by hand, paired over {len(less)} sets: "
            f"{difference}.\n"
        )
    return (
        f"# Nothing set\n\n    {command}\n\npyro_aeb {aeb.__version__}, torch {version('torch')}. "
        "Test errors are mean squares of the posterior mean, means ± standard errors over data "
        "sets. A feature is kept where its inclusion probability is above a half. Seconds of one "
        f"core.\n\n{markdown_table(header, lines)}\n{paired}"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--sets", type=int, default=20, help="data sets of each kind (default 20)")
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help=f"rows to run, of {', '.join(METHODS)} (default all)")  # fmt: skip
    add("--draws", type=int, default=DRAWS, help="after a quarter as many of warm-up")
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, default=Path("nothing_set_output"), help="where results go")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args: argparse.Namespace = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    size, draws, sets = Size(), args.draws, args.sets
    if args.smoke:
        size, draws, sets = Size(train=40, test=50, features=20), 20, 1
    tasks = [(FIRST_SEED + i, name) for i in range(sets) for name in args.methods]
    replicates = Replicates(args.out / "replicates.csv", FIGURES)
    failed = run_all(
        tasks,
        partial(run_one, size=size, draws=draws),
        partial(settings_of, size=size, draws=draws),
        replicates,
        args.jobs,
    )
    return finish(replicates, failed, report, command_line("nothing_set.py", argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
