# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A width v0 of the spikes that is learned, on problems of few large and of many small effects.

    python tutorials/reproduce/learned_width.py --out results --data-dir DATA

Test errors of ridge regression, of v0 = 0.005, and of v0 learned by Gibbs and by stochastic
approximation, each from starts at 0.002 and 0.1; of the posterior mean, four chains pooled. The
problems are the first experiment's (n = 100, p = 1000, three effects), riboflavin (ten folds of
two shuffles, the 1000 genes of greatest variance in the training rows), and four simulations of
n = 100 and p = 500: effects of all features, with and without three large ones, of independent
features and of AR(0.95) ones. DATA holds riboflavin.npz, with x and y. Nothing is chosen on test
data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common.experiment import command_line, finish
from common.harness import Replicates, run_all
from common.options import new_parser
from common.tables import cell, frame, markdown_table
from sparse_linear.data import Array, Size, simulate

import pyro_aeb as aeb

STARTS = (0.002, 0.1)
METHODS = (
    "ridge",
    "v0=0.005",
    *(f"{how} from {start:g}" for how in ("gibbs", "sa") for start in STARTS),
)
SIMULATED = ("dense", "dense and three large", "dense, AR(.95)", "mixed, AR(.95)")
PROBLEMS = ("A", "riboflavin", *SIMULATED)
FIGURES = ("mse", "v0_low", "v0_median", "v0_high", "sigma", "seconds")
CHAINS, STEPS_PER_DRAW = 4, 10
PENALTIES: Array = np.geomspace(1e-2, 1e5, 36)


def data_of(problem: str, seed: int, data_dir: Path | None) -> tuple[Array, Array, Array, Array]:
    """Features and targets to learn from and to test on, standardised by the former."""
    if problem == "A":
        found = simulate(5000 + seed, Size())
        x, y, x_test, y_test = found.X, found.y, found.X_test, found.y_test
    elif problem == "riboflavin":
        if data_dir is None:
            raise ValueError("riboflavin.npz is not there, expected its folder as --data-dir")
        stored = np.load(data_dir / "riboflavin.npz")
        order = np.random.default_rng(seed // 5).permutation(len(stored["y"]))
        test = np.array_split(order, 5)[seed % 5]
        train = np.setdiff1d(order, test)
        genes = np.argsort(-stored["x"][train].var(0))[:1000]
        features, targets = stored["x"][:, genes], stored["y"].astype(float)
        x, y, x_test, y_test = features[train], targets[train], features[test], targets[test]
    else:
        x, y, x_test, y_test = _simulated(problem, seed)
    centre, scale, mean = x.mean(0), x.std(0), y.mean()
    return (x - centre) / scale, y - mean, (x_test - centre) / scale, y_test - mean


def _simulated(problem: str, seed: int) -> tuple[Array, Array, Array, Array]:
    n, p = 100, 500
    rng = np.random.default_rng([7, SIMULATED.index(problem), seed])
    x = rng.standard_normal((n + 1000, p))
    if "AR" in problem:
        for j in range(1, p):
            x[:, j] = 0.95 * x[:, j - 1] + np.sqrt(1 - 0.95**2) * x[:, j]
    beta = rng.standard_normal(p) * np.sqrt((0.1 if "AR" in problem else 1.5) / p)
    if problem in ("dense and three large", "mixed, AR(.95)"):
        beta[[0, p // 3, 2 * p // 3]] += np.array([2.0, -2.0, 1.5])
    y = x @ beta + rng.standard_normal(len(x))
    return x[:n], y[:n], x[n:], y[n:]


def ridge(x: Array, y: Array, x_test: Array) -> Array:
    """Predictions at the penalty of least leave-one-out error; x and y are centred."""
    left, values, right = np.linalg.svd(x, full_matrices=False)
    free = 1 - 1 / len(y)  # what the mean leaves of one row
    best: tuple[float, Array] = (np.inf, y)
    for penalty in PENALTIES:
        shrink = values**2 / (values**2 + penalty)
        fitted = left @ (shrink * (left.T @ y))
        error = float(np.mean(((y - fitted) / (free - (left**2 * shrink).sum(1))) ** 2))
        if error < best[0]:
            best = error, right.T @ (shrink / values * (left.T @ y))
    return x_test @ best[1]


def regression(x: torch.Tensor, y: torch.Tensor, start: float | None) -> None:
    """A linear model; v0 is 0.005 where there is no start of it."""
    p = x.shape[1]
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
    delta = pyro.sample("delta", dist.Beta(4.0, float(p)))
    v0: Any = 0.005
    if start is not None:
        site: Any = {"init_value": torch.tensor(start)}
        rate = float(np.log(2.0) * np.sqrt(0.05 / p))
        v0 = pyro.sample("v0", dist.InverseGamma(1.0, rate), infer=site)
    beta = pyro.sample("beta", aeb.SSGL(v0, 1.0, delta, sigma2.sqrt()).expand([p]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma2.sqrt()), obs=y)


def run_one(name: str, seed: int, data_dir: Path | None, draws: int) -> dict[str, float]:
    """The figures of one method on one data set."""
    problem, method = name.split("; ")
    x, y, x_test, y_test = data_of(problem, seed, data_dir)
    if method == "ridge":
        return {"mse": float(np.mean((y_test - ridge(x, y, x_test)) ** 2))}
    start = float(method.split()[-1]) if " from " in method else None
    # In units of sigma v0 where v0 is learned, else of the weights.
    step_size = 0.01 if start is not None else 0.1 * (0.005 * y.std()) ** 2
    adaptation: Any = aeb.Gibbs(every=10)
    if method.startswith("sa"):
        omega = aeb.Polynomial(10.0, 1000.0, 0.7)
        adaptation = aeb.StochasticApproximation(omega, penalties="current", sigma_from="slab")
    kernel = aeb.AEBKernel(
        partial(regression, start=start),
        aeb.SGHMC(step_size),
        adaptation,
        seed=seed,
        steps_per_draw=STEPS_PER_DRAW,
    )
    mcmc = aeb.MCMC(
        kernel, draws, draws, num_chains=CHAINS, chain_method="vectorized", disable_progbar=True
    )
    clock = time.process_time()
    mcmc.run(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    samples = mcmc.get_samples()
    found = x_test @ samples["beta"].double().mean(0).numpy()
    figures = {
        "mse": float(np.mean((y_test - found) ** 2)),
        "sigma": float(samples["sigma2"].sqrt().mean()),
        "seconds": time.process_time() - clock,
    }
    if start is not None:
        low, median, high = np.quantile(samples["v0"].numpy(), (0.05, 0.5, 0.95))
        figures |= {"v0_low": float(low), "v0_median": float(median), "v0_high": float(high)}
    return figures


def report(rows: Sequence[dict[str, str]], command: str) -> str:
    """A table: means, and paired differences from the better of ridge and v0 = 0.005."""
    table = frame(rows, FIGURES)
    table[["problem", "method"]] = table["method"].str.split("; ", expand=True).to_numpy()
    lines = []
    for problem in (p for p in PROBLEMS if p in set(table["problem"])):
        of_problem = table[table["problem"] == problem]
        errors = of_problem.pivot(index="seed", columns="method", values="mse")
        best = errors[[m for m in METHODS[:2] if m in errors]].mean().idxmin()
        for method in (m for m in METHODS if m in errors):
            own = of_problem[of_problem["method"] == method]
            less = errors[method] - errors[best]
            difference = "reference" if method == best else cell(less.mean(), less.sem(), 3)
            v0, seconds = own["v0_median"].median(), own["seconds"].mean()
            number = str(len(own))
            mse = cell(own["mse"].mean(), own["mse"].sem(), 3)
            lines.append([f"{problem}, {method}", number, mse, difference, cell(v0), cell(seconds)])
    header = ["", "sets", "test MSE", "less the reference, paired", "v0, median", "seconds"]
    return (
        f"# A learned width of the spikes\n\n    {command}\n\npyro_aeb {aeb.__version__}, torch "
        f"{version('torch')}, pyro-ppl {version('pyro-ppl')}. Means ± standard errors over data "
        f"sets; seconds of one core, of all chains.\n\n{markdown_table(header, lines)}\n"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the experiment; returns the exit status, 0 if every fit is there."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS), metavar="PROBLEM",
        help=f"of {', '.join(PROBLEMS)} (default: all)")  # fmt: skip
    add("--sets", type=int, default=10, help="data sets of each problem (default 10)")
    add("--draws", type=int, default=1000, help="of each chain, after as many of warm-up")
    add("--data-dir", type=Path, help="folder of riboflavin.npz; without it, all other problems")
    add("--jobs", type=int, default=1, help="fits to run at the same time (default 1)")
    add("--out", type=Path, default=Path("learned_width_output"), help="where results go")
    add("--smoke", action="store_true", help="tiny and meaningless, to see that everything runs")
    args: argparse.Namespace = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    sets, draws = (1, 3) if args.smoke else (args.sets, args.draws)
    problems = [p for p in args.problems if p != "riboflavin" or args.data_dir is not None]
    tasks = [(s, f"{p}; {m}") for s in range(sets) for p in problems for m in METHODS]
    settings = f"{CHAINS} chains, {draws} draws of {STEPS_PER_DRAW} steps"
    replicates = Replicates(args.out / "replicates.csv", FIGURES)
    run = partial(run_one, data_dir=args.data_dir, draws=draws)
    failed = run_all(tasks, run, lambda name: settings, replicates, args.jobs)
    return finish(replicates, failed, report, command_line("learned_width.py", argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
