# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The regularised horseshoe of the large-p-small-n page by NUTS, in Pyro and in NumPyro: seconds of
processor time on one thread, and test error, on the first data sets of that page.

    python -m tests.benchmarks.horseshoe --sets 2

Model, data, chain lengths and tree depth are those of ``reproduce/sparse_linear/horseshoe.py``; the
scales are sampled and the coefficients' posterior mean is that of their conditional means.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorials" / "reproduce"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import torch  # noqa: E402
from sparse_linear.data import Problem, simulate  # noqa: E402
from sparse_linear.horseshoe import HorseshoeSettings, horseshoe  # noqa: E402

SETTINGS = HorseshoeSettings()


def variance_of(sigma: Any, tau: Any, c2: Any, local: Any, n: int) -> Any:
    """V, the variance of every coefficient given the scales, shape (p,)."""
    guess = SETTINGS.expected_signals
    scale2 = (tau * guess / (local.shape[-1] - guess) * sigma) ** 2 / n * local**2
    return c2 * scale2 / (c2 + scale2)


def scales_model(X: Any, y: Any) -> None:
    """``sparse_linear.horseshoe.scales_model``, in NumPyro."""
    n, p = X.shape
    sigma = numpyro.sample("sigma", dist.HalfNormal(y.std(ddof=1)))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    c2 = numpyro.sample("c2", dist.InverseGamma(2.0, 2.0 * y.var(ddof=1)))
    with numpyro.plate("features", p):
        local = numpyro.sample("local", dist.HalfCauchy(1.0))
    covariance = (X * variance_of(sigma, tau, c2, local, n)) @ X.T + sigma**2 * jnp.eye(n)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(n), covariance), obs=y)


def conditional_mean(scales: dict[str, Any], X: Any, y: Any) -> Any:
    """The mean of the coefficients given the scales of a draw, shape (p,)."""
    variance = variance_of(**scales, n=len(y))
    covariance = (X * variance) @ X.T + scales["sigma"] ** 2 * jnp.eye(len(y))
    return variance * (X.T @ jnp.linalg.solve(covariance, y))


def in_numpyro(problem: Problem, seed: int) -> Any:
    """The posterior mean of the coefficients."""
    X, y = jnp.asarray(problem.X), jnp.asarray(problem.y)
    kernel = numpyro.infer.NUTS(scales_model, max_tree_depth=SETTINGS.tree_depth)
    mcmc = numpyro.infer.MCMC(
        kernel,
        num_warmup=SETTINGS.warmup,
        num_samples=SETTINGS.draws,
        num_chains=SETTINGS.chains,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), X, y)
    means = jax.lax.map(lambda scales: conditional_mean(scales, X, y), mcmc.get_samples())
    return np.asarray(means.mean(0))


def main(sets: int) -> None:
    """Prints a row for each data set, and the means."""
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    rows = []
    print(f"{'seed':>4}{'Pyro, s':>10}{'NumPyro, s':>12}{'test MSE':>10}{'test MSE':>10}")
    for seed in range(sets):
        problem = simulate(seed)
        row: list[float] = []
        errors = []
        for fit in (lambda p, s: horseshoe(p, s).coefficients, in_numpyro):
            start = time.process_time()
            coefficients = fit(problem, seed)
            row.append(time.process_time() - start)
            errors.append(np.mean((problem.y_test - problem.X_test @ coefficients) ** 2))
        rows.append([*row, *errors])
        print(f"{seed:4}{row[0]:10.1f}{row[1]:12.1f}{errors[0]:10.2f}{errors[1]:10.2f}", flush=True)
    mean = np.mean(rows, axis=0)
    print(f"mean{mean[0]:10.1f}{mean[1]:12.1f}{mean[2]:10.2f}{mean[3]:10.2f}")
    print(f"numpyro {numpyro.__version__}, jax {jax.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--sets", type=int, default=2, help="data sets, seeds from 0 (default 2)")
    main(parser.parse_args().sets)
