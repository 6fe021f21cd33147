# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Simulation-based calibration of ``Gibbs``: ranks of weights, sigma and delta among their draws.

    python tutorials/reproduce/gibbs_sbc.py --out results

All of them are drawn from the prior and data from them, 30 rows of 4 features; then SGHMC with
``Gibbs`` samples their posterior. Ranks of a correct sampler are uniform. One row is wrong on
purpose: its delta has another prior than the data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from calibration.exact import Prior
from calibration.models import features, regression
from common.experiment import command_line, finish
from common.harness import Replicates, run_all
from common.options import new_parser
from common.tables import frame, markdown_table
from scipy import stats

import pyro_aeb as aeb

SIZE, P, CORRELATION = 30, 4, 0.5
PRIOR = Prior(v0=0.2, v1=4.0, nu=10.0, nu_lambda=8.0, beta=(2.0, 2.0))
RIGHT, TOGETHER, WRONG = METHODS = ("flips", "no flips", "flips, wrong prior of delta")
QUANTITIES = (*(f"beta{j}" for j in range(1, P + 1)), "sigma", "delta")
FIGURES = (*QUANTITIES, "seconds")
DRAWS, WARMUP, THIN, STEP = 19, 4, 100, 0.05
LEVEL = 0.01
"""Level of the test of all quantities of a row together: each is tested at a sixth of it."""


def run_one(name: str, seed: int, thin: int) -> dict[str, float]:
    """Draw parameters and data, sample the posterior, and return the ranks of the parameters."""
    torch.set_num_threads(1)
    clock = time.process_time()
    x = features(SIZE, P, CORRELATION, np.random.default_rng(0))
    rng = np.random.default_rng(seed)
    sigma = (PRIOR.nu_lambda / 2 / rng.gamma(PRIOR.nu / 2)) ** 0.5
    delta = rng.beta(*PRIOR.beta)
    narrow = rng.laplace(0.0, sigma * PRIOR.v0, P)
    beta = np.where(rng.uniform(size=P) < delta, rng.normal(0.0, sigma * PRIOR.v1**0.5, P), narrow)
    y = x @ beta + rng.normal(0.0, sigma, SIZE)
    prior = PRIOR if name != WRONG else replace(PRIOR, beta=(6.0, 2.0))
    largest = float(np.linalg.eigvalsh(x.T @ x)[-1])
    kernel = aeb.AEBKernel(
        regression,
        aeb.SGHMC(STEP / largest, friction=0.3),
        aeb.Gibbs(every=10, flips=name != TOGETHER),
        steps_per_draw=thin,
        seed=seed,
        compile=False,
    )
    mcmc = aeb.MCMC(kernel, DRAWS, WARMUP, disable_progbar=True)
    mcmc.run(*(torch.tensor(v, dtype=torch.float32) for v in (x, y)), prior)
    draws = {name: value.double().numpy() for name, value in mcmc.get_samples().items()}
    drawn = np.column_stack([draws["beta"], draws["sigma2"] ** 0.5, draws["delta"]])
    ranks = (drawn < np.array([*beta, sigma, delta])).sum(0)
    found = dict(zip(QUANTITIES, map(float, ranks), strict=True))
    return found | {"seconds": time.process_time() - clock}


def report(rows: Sequence[dict[str, str]], command: str) -> str:
    """A table: p values of chi-square tests that all ranks are equally likely."""
    table = frame(rows, FIGURES)
    lines = []
    for name in (name for name in METHODS if name in set(table["method"])):
        own = table[table["method"] == name]
        counts = [np.bincount(own[q].astype(int), minlength=DRAWS + 1) for q in QUANTITIES]
        singles = stats.chisquare(counts, axis=1).pvalue
        p_value = min(1.0, len(QUANTITIES) * float(singles.min()))
        verdict = "rejected" if p_value < LEVEL else "uniform"
        cells = [f"{p:.2g}" for p in singles]
        lines.append([name, str(len(own)), *cells, f"{p_value:.2g}", verdict])
    header = ["row", "data sets", *QUANTITIES, "p", "ranks are"]
    return (
        f"# Calibration of Gibbs\n\n    {command}\n\npyro_aeb {aeb.__version__}, torch "
        f"{version('torch')}. P values of chi-square tests, {DRAWS} draws of {THIN} steps each. p "
        f"is six times the smallest; below {LEVEL} the row is rejected.\n\n"
        f"{markdown_table(header, lines)}\n"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--sets", type=int, default=200, help="data sets of each row (default 200)")
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help=f"rows to run, of {', '.join(METHODS)} (default all)")  # fmt: skip
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, default=Path("gibbs_sbc_output"), help="where results go")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args: argparse.Namespace = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    sets, thin = (3, 10) if args.smoke else (args.sets, THIN)
    tasks = [(seed, name) for seed in range(sets) for name in args.methods]
    settings = (
        f"{DRAWS} draws of {thin} steps after {WARMUP}, step {STEP} over the largest curvature"
    )
    replicates = Replicates(args.out / "replicates.csv", FIGURES)
    run = partial(run_one, thin=thin)
    failed = run_all(tasks, run, lambda name: settings, replicates, args.jobs)
    return finish(replicates, failed, report, command_line("gibbs_sbc.py", argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
