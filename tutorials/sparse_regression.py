# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sparse regression, start to finish
==================================

100 observations, 1000 correlated features, and only the first three matter: beta is (3, 2, 1, 0,
0, ...), give or take. Least squares has no answer here and ridge smears the signal over everything.
This walkthrough finds the three features with a spike-and-slab prior, learns how sparse the problem
is on the way, and says how sure it is.

    python tutorials/sparse_regression.py

It takes half a minute and leaves a figure and the trace in ``sparse_regression_output/``.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import MCMC, Predictive
from pyro.infer.autoguide.initialization import init_to_value
from reproduce.sparse_linear import classical
from reproduce.sparse_linear.data import Problem, Size, simulate
from reproduce.sparse_linear.metrics import Fit, score
from reproduce.sparse_linear.recommended import (
    CHOOSE,
    OMEGA,
    SAMPLE,
    STEPS_PER_DRAW,
    V1,
    Run,
    residual_scale,
)
from scipy import stats
from torch import Tensor

import pyro_aeb as aeb

# 1. The model
# ------------
# An ordinary Pyro model; the only news is `SSGL`, the spike-and-slab Gaussian-Laplace prior. With
# probability delta a coefficient is of the wide Gaussian (the slab: it matters), otherwise of the
# narrow Laplace (the spike: it does not). Both widths are in units of the noise scale sigma.
#
# delta is a sample site like any other. Because it feeds the SSGL prior, AEBKernel recognises it
# and learns it by stochastic approximation. sigma could be a site too (`sigma2.sqrt()` of an
# InverseGamma). Here it is a number, estimated beforehand: with ten features to every row, the
# spikes decide sigma more than the residuals do.


def model(X: Tensor, y: Tensor | None, v0: float, sigma: float) -> Tensor:
    """
    Sparse linear regression.

    :param X: features, shape (n, p).
    :param y: responses, shape (n,); None to predict them.
    :param float v0: width of the spike, in units of sigma.
    :param float sigma: standard deviation of the noise.
    """
    n, p = X.shape
    delta = pyro.sample("delta", dist.Beta(1.0, float(p)))
    with pyro.plate("features", p):
        beta = pyro.sample("beta", aeb.SSGL(v0=v0, v1=V1, delta=delta, sigma=sigma))
    with pyro.plate("data", n):
        return pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


# 2. The sampler
# --------------
# Three decisions:
# - the transition moves the coefficients: stochastic-gradient Hamiltonian Monte Carlo;
# - the adaptation moves delta and the inclusion probabilities a little after every step; its
#   weight shrinks, so that they settle;
# - a draw is kept every 10 steps.
# The kernel goes into Pyro's own MCMC. Keyword arguments of `run` go to the model.


def run_chain(
    X: Tensor,
    y: Tensor,
    settings: Run,
    sigma: float,
    first: dict[str, Tensor],
    adaptation: aeb.StochasticApproximation,
    args: argparse.Namespace,
) -> MCMC:
    """One run of the kernel, from given first values."""
    kernel = aeb.AEBKernel(
        model,
        aeb.SGHMC(settings.step_size, friction=0.1),
        adaptation=adaptation,
        inverse_temperature=settings.tau,
        steps_per_draw=STEPS_PER_DRAW,
        init_strategy=init_to_value(values=first),
        seed=args.seed,
    )
    mcmc = MCMC(kernel, **settings.draws(0.05 if args.smoke else 1.0))
    mcmc.run(X, y, v0=settings.v0, sigma=sigma)
    return mcmc


def main(args: argparse.Namespace) -> None:
    """The walkthrough."""
    args.out.mkdir(parents=True, exist_ok=True)

    # 3. Data, and two runs
    # ---------------------
    # The first run is cold: at inverse temperature 10 the coefficients hardly shake, and the
    # latents can tell signal from noise. It chooses. The second starts where the first ended, with
    # a narrower spike and at temperature 1, and samples: its draws are as wide as a posterior is.
    # Where the numbers come from is said in `reproduce/sparse_linear/recommended.py`.
    size = Size(train=40, test=50, features=20) if args.smoke else Size()
    problem = simulate(args.seed, size)
    X = torch.from_numpy(problem.X).float()
    y = torch.from_numpy(problem.y).float()
    sigma = residual_scale(X, y)

    pyro.set_rng_seed(args.seed)
    start = {"beta": 0.1 * torch.randn(size.features), "delta": torch.tensor(0.5)}
    fresh = aeb.StochasticApproximation(OMEGA, initial_penalty=1.0)
    cold = run_chain(X, y, CHOOSE, sigma, start, fresh, args)

    end = {name: draws[-1] for name, draws in cold.get_samples().items()}
    rho = cold.kernel.latents.rho
    print(f"Run 1 of 2, cold, chooses: {int((rho > 0.5).sum())} of {size.features} features.")
    print("Run 2 of 2, at temperature 1, starts there and samples: what follows is of this run.")
    chosen = {"beta": rho}
    warm = aeb.StochasticApproximation(OMEGA, initial_inclusion=chosen)
    mcmc = run_chain(X, y, SAMPLE, sigma, end, warm, args)

    # 4. What it found
    # ----------------
    # `to_arviz` gives every array a name: the plates of the model become dimensions. The group
    # `adaptation` holds the probability that each coefficient is of the slab, at every draw; its
    # average above 1/2 is our rule for "this feature matters".
    names = [f"x{j + 1}" for j in range(size.features)]
    trace = aeb.to_arviz(mcmc, coords={"features": names})
    trace.to_netcdf(args.out / "trace.nc")
    beta = trace.posterior["beta"].values[0]  # (draws, p)
    inclusion = trace.adaptation["beta_rho"].values[0].mean(0)  # (p,)
    found = Fit(
        coefficients=beta.mean(0),
        selected=inclusion > 0.5,
        interval=np.quantile(beta, (0.05, 0.95), axis=0),
        last=beta[-1],
    )
    print_signals(problem, found, inclusion)

    # 5. Does it predict?
    # -------------------
    # Against least squares that was told the three features, exact ridge, and the cross-validated
    # lasso, all on the same data.
    fits = {
        "oracle least squares": classical.least_squares(problem, problem.signals),
        "exact ridge": classical.ridge(problem),
        "lasso by CV": classical.lasso(problem, args.seed),
        "SGHMC-SA": found,
    }
    print_comparison(problem, fits)

    # Stock Predictive draws new responses: noise and all, so its intervals are for observations.
    X_test = torch.from_numpy(problem.X_test).float()
    replies = Predictive(model, mcmc.get_samples())(X_test, None, SAMPLE.v0, sigma)["y"].numpy()
    low, high = np.quantile(replies, (0.05, 0.95), axis=0)
    inside = np.mean((low <= problem.y_test) & (problem.y_test <= high))
    print(f"\n90 % predictive intervals hold {100 * inside:.0f} % of the test responses")

    # 6. Diagnostics
    # --------------
    # R-hat and effective sample size speak of draws, so they are for beta. delta is no draw: it is
    # a point estimate on its way to a fixed point, and its "interval" says how far it still
    # wanders, not how uncertain it is. Look at its path instead, in the figure.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one chain: ArviZ would rather have four
        print("\nDraws:")
        print(az.summary(trace, var_names=["beta"], coords={"features": names[:3]}).to_string())
        print("\nPath of a point estimate (read mean only):")
        print(az.summary(trace, var_names=["delta"], kind="stats").to_string())

    # `check` says in words what a run's own record shows. Of this one it finds two things that are
    # the price of a run of seconds: steps that are not small next to the spikes, so that these are
    # too wide, and draws that remember one another.
    print()
    verdict = aeb.check(mcmc)
    if not verdict.ok:
        print(
            "\nThis run takes seconds, and its warnings are the price. Its steps are not small "
            "next to the\nspikes, which come out too wide, and its draws remember one another. "
            "Smaller steps and\nmore draws mend both, and take as many times longer."
        )

    figure = draw(problem, found, beta, inclusion, [aeb.to_arviz(cold), trace])
    figure.savefig(args.out / "sparse_regression.png", dpi=110)
    print(f"\nsparse_regression.png and trace.nc are in {args.out}")


def told_the_three(problem: Problem) -> tuple[Any, Any]:
    """Least squares on the true features alone: estimates, and 90 % intervals of shape (2, 3)."""
    X = problem.X[:, problem.signals]
    estimate = np.linalg.lstsq(X, problem.y, rcond=None)[0]
    free = len(X) - X.shape[1]
    variance = np.sum((problem.y - X @ estimate) ** 2) / free
    error = np.sqrt(variance * np.diag(np.linalg.inv(X.T @ X)))
    reach = stats.t.ppf(0.95, free) * error
    return estimate, np.stack([estimate - reach, estimate + reach])


def print_signals(problem: Problem, found: Fit, inclusion: Any) -> None:
    """The three coefficients that matter, beside least squares, and what else was kept."""
    assert found.interval is not None
    estimate, intervals = told_the_three(problem)
    own = found.interval[:, problem.signals]
    truth = problem.beta[problem.signals]
    print(f"\n{'':40}{'':9}{'least squares, told the three':>34}")
    print(
        f"{'':8}{'truth':>6}{'mean':>8}{'90 % interval':>18}{'P(slab)':>9}"
        f"{'estimate':>16}{'90 % interval':>18}"
    )
    for i, j in enumerate(problem.signals):
        spans = [f"[{low:.2f}, {high:.2f}]" for low, high in (own[:, i], intervals[:, i])]
        print(
            f"beta_{j + 1:<3}{truth[i]:6.2f}{found.coefficients[j]:8.2f}{spans[0]:>18}"
            f"{inclusion[j]:9.2f}{estimate[i]:16.2f}{spans[1]:>18}"
        )
    misses, usual = (int(((truth < x[0]) | (truth > x[1])).sum()) for x in (own, intervals))
    print(f"intervals that miss the truth: {misses} of 3, and {usual} of 3 by least squares")
    if usual and misses:
        print("(these data are unlucky: not even who knows the three features is near the truth)")
    kept = ", ".join(f"x{j + 1}" for j in np.flatnonzero(found.selected)) or "none"
    print(f"features kept: {kept} (the truth: x1, x2, x3)")


def print_comparison(problem: Problem, fits: dict[str, Fit]) -> None:
    """Test errors and support of several fits."""
    print(f"\n{'':22}{'test MSE':>9}{'test MAE':>9}{'kept':>6}{'right':>7}")
    for name, fit in fits.items():
        row = score(problem, fit)
        right = int(fit.selected[problem.signals].sum())
        print(f"{name:22}{row['mse']:9.2f}{row['mae']:9.2f}{row['selected']:6.0f}{right:7d}")
    print("(the noise alone gives a test MSE of 3)")


# 7. The figure
# -------------
# Six views of the run: posteriors with the truth; the fit on training and on test data; every
# estimate with its interval against its true value; which features are in; and how many are
# expected to be, along both runs with the warm-up cut off.


def draw(problem: Problem, found: Fit, beta: Any, inclusion: Any, traces: list[Any]) -> Figure:
    """
    The figure.

    :param Problem problem: the data.
    :param Fit found: the posterior mean and intervals.
    :param beta: draws, shape (draws, p).
    :param inclusion: averaged probability of the slab, shape (p,).
    :param traces: of ``to_arviz``, the cold run's first.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    colors = ("C0", "C1", "C2")

    axes = panels[0, 0]
    for j, color in zip(problem.signals, colors, strict=True):
        axes.hist(beta[:, j], bins=30, density=True, alpha=0.6, color=color, label=f"β{j + 1}")
        axes.axvline(problem.beta[j], 0.0, 0.85, color=color, linestyle="--")
    for x, color in zip(told_the_three(problem)[0], colors, strict=True):
        axes.axvline(x, 0.0, 0.85, color=color, linestyle=":")
    axes.set(xlabel="coefficient", yticks=[], ylim=(0.0, axes.get_ylim()[1] * 1.15))
    axes.set_title("posteriors (dashed: truth; dotted: least squares)", fontsize=11)
    axes.legend(loc="upper center", ncols=3, frameon=False)

    halves = {"training": (problem.X, problem.y), "test": (problem.X_test, problem.y_test)}
    for axes, (half, (X, y)) in zip(panels[0, 1:], halves.items(), strict=True):
        predicted = X @ found.coefficients
        axes.plot(predicted, y, "o", markersize=3, alpha=0.5)
        ends = [y.min(), y.max()]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        error = np.mean((y - predicted) ** 2)
        axes.set(title=f"{half} data, MSE {error:.2f}", xlabel="predicted", ylabel="observed")

    axes = panels[1, 0]
    assert found.interval is not None
    reach = np.abs(found.interval - found.coefficients)
    axes.errorbar(
        problem.beta, found.coefficients, yerr=reach, fmt="o", markersize=3, elinewidth=0.8
    )
    ends = [-0.3, problem.beta.max() + 0.3]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(title="estimates against truth (90 % intervals)", xlabel="true β", ylabel="estimate")

    axes = panels[1, 1]
    positions = np.arange(1, len(inclusion) + 1)
    axes.vlines(positions, 0.0, inclusion, color="C0")
    axes.plot(positions[problem.signals], inclusion[problem.signals], "o", color="C3")
    axes.axhline(0.5, color="gray", linestyle=":")
    axes.set(title="P(slab) (red: the true three)", xlabel="feature", ylim=(0.0, 1.05))
    axes.set_xscale("log")

    axes = panels[1, 2]
    start = 0
    for label, trace in zip(("1: choose", "2: sample"), traces, strict=True):
        expected = trace.adaptation["beta_rho"].values[0].sum(-1)
        axes.plot(np.arange(start, start + len(expected)), expected, label=label)
        start += len(expected)
    axes.axhline(len(problem.signals), color="gray", linestyle="--", label="truth")
    axes.set(title="expected features in the slab", xlabel="draw, the two runs in a row")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
    axes.legend(loc="upper center", ncols=3, frameon=False, handlelength=1.2, columnspacing=1.2)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sparse regression with 1000 features, 100 rows.")
    parser.add_argument("--out", type=Path, default=Path("sparse_regression_output"))
    parser.add_argument("--seed", type=int, default=2019, help="of the data and of the chain")
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that everything runs")
    main(parser.parse_args())
