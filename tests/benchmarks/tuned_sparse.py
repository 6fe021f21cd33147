# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sparse regression with no number set, beside settings by hand, and on pure noise, as one table.

    python -m tests.benchmarks.tuned_sparse --out docs/results/tuning

writes a row for every run to ``sparse.csv``, which a second call goes on with, and ``sparse.md``,
means over data sets.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

import pyro_aeb as aeb

N = 100
COLUMNS = ("data", "settings", "seed", "excess", "kept", "others", "ess", "steps", "seconds")


def simulate(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Return features correlated as 0.6^|i - j|, targets, the weights, and the features' covariance.

    :param str kind: ``"effects"`` of 3, 2 and 1 among 60 weights, noise variance 3, as in the first
        experiment; or ``"noise"``, with none.
    """
    generator = torch.Generator().manual_seed(seed)
    p = 60
    order = torch.arange(p)
    covariance = 0.6 ** (order[:, None] - order).abs()
    X = torch.randn(N, p, generator=generator) @ torch.linalg.cholesky(covariance).T
    beta = torch.zeros(p)
    if kind == "effects":
        beta[:3] = torch.tensor([3.0, 2.0, 1.0])
    return X, X @ beta + 3.0**0.5 * torch.randn(N, generator=generator), beta, covariance


def without_settings(X: Tensor, y: Tensor, seed: int) -> aeb.MCMC:
    """Return a run in which no number is set but those of draws and chains."""
    prior = aeb.priors.SparsePrior(X, y)

    def model(X: Tensor, y: Tensor) -> None:
        beta, sigma = prior.sample("beta")
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

    return run(aeb.AEBKernel(model, adaptation=aeb.Gibbs(), seed=seed), X, y)


def by_hand(X: Tensor, y: Tensor, seed: int) -> aeb.MCMC:
    """Return a run with the settings of the README's first program."""

    def model(X: Tensor, y: Tensor) -> None:
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(0.5, 0.5))
        delta = pyro.sample("delta", dist.Beta(2.0, float(X.shape[1])))
        with pyro.plate("features", X.shape[1]):
            beta = pyro.sample("beta", aeb.SSGL(0.05, 10.0, delta, sigma2.sqrt()))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, sigma2.sqrt()), obs=y)

    kernel = aeb.AEBKernel(model, aeb.SGHMC(2e-4), aeb.Gibbs(), steps_per_draw=10, seed=seed)
    return run(kernel, X, y)


def run(kernel: aeb.AEBKernel, X: Tensor, y: Tensor) -> aeb.MCMC:
    """Run two chains of a kernel."""
    mcmc = aeb.MCMC(kernel, 400, 100, num_chains=2, chain_method="vectorized", disable_progbar=True)
    mcmc.run(X, y)
    return mcmc


RUNS: dict[str, Callable[[Tensor, Tensor, int], aeb.MCMC]] = {
    "none": without_settings,
    "by hand": by_hand,
}


def measure(kind: str, settings: str, seed: int) -> dict[str, object]:
    """Return the figures of one run; the excess is of the error of prediction over the noise's."""
    X, y, beta, covariance = simulate(kind, seed)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mcmc = RUNS[settings](X, y, seed)
    seconds = time.process_time() - started
    draws = mcmc.get_samples(group_by_chain=True)["beta"]
    error = draws.mean((0, 1)) - beta
    probability = torch.as_tensor(aeb.inclusion(mcmc)["beta"].probability)
    kept = probability.reshape(-1) > 0.5
    figures = [
        float(error @ covariance @ error),
        int((kept & (beta != 0.0)).sum()),
        int((kept & (beta == 0.0)).sum()),
        float(effective_sample_size(draws, 0, 1).min()),
        mcmc.kernel.chain.step,
        round(seconds, 1),
    ]
    return dict(zip(COLUMNS, [kind, settings, seed, *figures], strict=True))


def summarize(rows: list[dict[str, str]]) -> str:
    """Return the table of means over data sets."""
    lines = [
        "| data | settings | data sets | excess error | effects kept, of 3 | others kept | "
        "smallest ESS | steps |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in ("effects", "noise"):
        for settings in RUNS:
            found = [r for r in rows if r["data"] == kind and r["settings"] == settings]
            if not found:
                continue
            table = torch.tensor([[float(row[name]) for name in COLUMNS[3:]] for row in found])
            mean, error = table.mean(0), table.std(0) / len(found) ** 0.5
            cells = [f"{mean[0]:.3f} ± {error[0]:.3f}"]
            cells += [f"{mean[1]:.2f}" if kind == "effects" else "", f"{mean[2]:.2f}"]
            cells += [f"{table[:, 3].min():.0f}", f"{mean[4]:,.0f}"]
            lines.append(f"| {kind} | {settings} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(4000, 4010)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sparse.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n", "utf-8")
    for kind, settings in (("noise", "none"), ("effects", "none"), ("effects", "by hand")):
        for seed in options.seeds:
            with path.open(encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            key = {"data": kind, "settings": settings, "seed": str(seed)}
            if any(key.items() <= row.items() for row in rows):
                continue
            with path.open("a", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow(measure(kind, settings, seed))
    with path.open(encoding="utf-8") as file:
        (options.out / "sparse.md").write_text(summarize(list(csv.DictReader(file))), "utf-8")


if __name__ == "__main__":
    main()
