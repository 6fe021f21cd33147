# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
``AEBKernel(model)``, with nothing set, beside exact posteriors, as one table.

    python -m tests.benchmarks.tuning --out docs/results/tuning

writes Markdown, a row for every bed: errors of means and sds, kinetic temperature, the effective
sample size of the worst weight, steps, and the warnings given. It takes some ten minutes of one
core; ``--beds`` and ``--seeds`` take a part.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

import pyro_aeb as aeb


class Bed(NamedTuple):
    """
    A model with data, and the exact mean and sd of every weight.

    :param draws: turns the draws of a run into those of the weights, shape (n, M).
    """

    model: Callable[..., None]
    arguments: tuple[Tensor, ...]
    mean: Tensor
    sd: Tensor
    draws: Callable[[dict[str, Tensor]], Tensor]


class Row(NamedTuple):
    """Figures of one run."""

    z: float
    mean_ratio: float
    least_ratio: float
    largest_ratio: float
    heat: float
    ess: float
    steps: int
    seconds: float
    warnings: int


def linear(seed: int, correlation: float, batch: int | None = None, unit: float = 1.0) -> Bed:
    """Return a regression of 400 data on 60 features with scales from 0.01 to 100."""
    generator = torch.Generator().manual_seed(seed)
    n, p = 400, 60
    common = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    X = torch.randn(n, p, dtype=torch.float64, generator=generator)
    scale = torch.logspace(-2.0, 2.0, p, dtype=torch.float64) * unit
    X = ((1.0 - correlation) ** 0.5 * X + correlation**0.5 * common) * scale
    beta = 0.3 * torch.randn(p, dtype=torch.float64, generator=generator) / scale
    y = X @ beta + torch.randn(n, dtype=torch.float64, generator=generator)
    width = 100.0 / unit

    def model(X: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(p), width).to_event(1))
        with pyro.plate("data", n, subsample_size=batch) as i:
            rows = slice(None) if batch is None else i
            pyro.sample("y", dist.Normal(X[rows] @ beta, 1.0), obs=y[rows])

    covariance = torch.linalg.inv(X.T @ X + torch.eye(p) / width**2)
    mean, sd = covariance @ X.T @ y, covariance.diagonal().sqrt()
    return Bed(model, (X.float(), y.float()), mean, sd, lambda draws: draws["beta"])


def logistic(seed: int) -> Bed:
    """Return a classification of 5,000 data with 50 features in batches of 100."""
    generator = torch.Generator().manual_seed(seed)
    n, p = 5000, 50
    X = torch.randn(n, p, generator=generator)
    beta = 0.5 * torch.randn(p, generator=generator)
    y = torch.bernoulli(torch.sigmoid(X @ beta), generator=generator)

    def model(X: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(p), 10.0).to_event(1))
        with pyro.plate("data", n, subsample_size=100) as i:
            pyro.sample("y", dist.Bernoulli(logits=X[i] @ beta), obs=y[i])

    mean, sd = importance_sample(X.double(), y.double(), 0.01, generator)
    return Bed(model, (X, y), mean, sd, lambda draws: draws["beta"])


def importance_sample(
    X: Tensor, y: Tensor, precision: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return mean and sd of a logistic posterior, by weighted draws around its mode."""
    beta, eye = X.new_zeros(X.shape[1]), torch.eye(X.shape[1], dtype=X.dtype)
    for _ in range(20):
        share = torch.sigmoid(X @ beta)
        curvature = X.T @ (X * (share * (1.0 - share))[:, None]) + precision * eye
        beta = beta + torch.linalg.solve(curvature, X.T @ (y - share) - precision * beta)
    root = torch.linalg.cholesky(torch.linalg.inv(curvature))
    z = torch.randn(10_000, len(beta), dtype=X.dtype, generator=generator)
    draws = beta + z @ root.T
    logits = draws @ X.T
    log_density = logits @ y - torch.nn.functional.softplus(logits).sum(-1)
    log_density = log_density - 0.5 * precision * draws.square().sum(-1)
    weight = torch.softmax(log_density + 0.5 * z.square().sum(-1), 0)[:, None]
    mean = (weight * draws).sum(0)
    return mean, (weight * (draws - mean).square()).sum(0).sqrt()


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(centred: bool) -> Bed:
    """Return the eight schools, of mean and sd by quadrature over mu and log tau."""

    def model(errors: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, errors), obs=y)

    def of_draws(draws: dict[str, Tensor]) -> Tensor:
        mu, tau = draws["mu"], draws["tau"]
        theta = draws["theta"] if centred else mu[:, None] + tau[:, None] * draws["eta"]
        return torch.cat([mu[:, None], tau.log()[:, None], theta], 1)

    mu = torch.linspace(-25.0, 35.0, 601, dtype=torch.float64)[:, None]
    tau = torch.linspace(-9.0, 6.0, 1501, dtype=torch.float64).exp()[None]
    log = -0.5 * (mu / 5.0) ** 2 - torch.log1p((tau / 5.0) ** 2) + tau.log()
    for y, error in zip(EFFECTS.double(), ERRORS.double(), strict=True):
        variance = error**2 + tau**2
        log = log - 0.5 * ((y - mu) ** 2 / variance + variance.log())
    weight = torch.softmax(log.flatten(), 0).reshape(log.shape)
    first, second = [mu + 0 * tau, tau.log() + 0 * mu], [mu**2 + 0 * tau, tau.log() ** 2 + 0 * mu]
    for y, error in zip(EFFECTS.double(), ERRORS.double(), strict=True):
        precision = error**-2 + tau**-2
        centre = (y / error**2 + mu / tau**2) / precision
        first.append(centre)
        second.append(centre**2 + 1.0 / precision)
    mean = torch.stack([(weight * value).sum() for value in first])
    square = torch.stack([(weight * value).sum() for value in second])
    return Bed(model, (ERRORS, EFFECTS), mean, (square - mean**2).sqrt(), of_draws)


BEDS: dict[str, Callable[[int], Bed]] = {
    "linear, p = 60, scales 0.01 to 100": lambda seed: linear(seed, 0.0),
    "linear, correlation 0.5": lambda seed: linear(seed, 0.5),
    "linear, correlation 0.9": lambda seed: linear(seed, 0.9),
    "linear, no correlation, X times 1000": lambda seed: linear(seed, 0.0, unit=1000.0),
    "linear, no correlation, batches of 40": lambda seed: linear(seed, 0.0, batch=40),
    "linear, correlation 0.9, batches of 40": lambda seed: linear(seed, 0.9, batch=40),
    "logistic, n = 5000, p = 50, batches of 100": logistic,
    "eight schools, not centred": lambda seed: schools(False),
    "eight schools, centred": lambda seed: schools(True),
}


def measure(bed: Bed, seed: int, samples: int = 1000) -> Row:
    """Run the kernel with nothing set."""
    kernel = aeb.AEBKernel(bed.model, seed=seed)
    run = aeb.MCMC(kernel, samples, 200, disable_progbar=True)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", aeb.TuningWarning)
        run.run(*bed.arguments)
    seconds = time.process_time() - started
    draws = bed.draws(run.get_samples()).double()
    z = (draws.mean(0) - bed.mean) / bed.sd
    ratio = draws.std(0) / bed.sd
    ess = effective_sample_size(draws[None], 0, 1)
    heat = max(kernel.tuning.kinetic_temperature.values())
    told = [warning for warning in caught if issubclass(warning.category, aeb.TuningWarning)]
    return Row(
        float(z.square().mean().sqrt()),
        float(ratio.mean()),
        float(ratio.min()),
        float(ratio.max()),
        heat,
        float(ess.min()),
        kernel.chain.step,
        seconds,
        len(told),
    )


HEADER = (
    "| bed | seed | z | sd over exact | KT | ESS | steps | seconds | warnings |\n"
    "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n"
)


def line(name: str, seed: int, row: Row) -> str:
    """Return a row of the table."""
    ratios = f"{row.mean_ratio:.3f} [{row.least_ratio:.2f}, {row.largest_ratio:.2f}]"
    return (
        f"| {name} | {seed} | {row.z:.3f} | {ratios} | {row.heat:.2f} | {row.ess:.0f} | "
        f"{row.steps:,} | {row.seconds:.0f} | {row.warnings} |\n"
    )


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--beds", type=int, nargs="*", default=list(range(len(BEDS))))
    parser.add_argument("--seeds", type=int, nargs="*", default=[901, 902])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    table = HEADER
    for place in options.beds:
        name = list(BEDS)[place]
        for seed in options.seeds:
            table += line(name, seed, measure(BEDS[name](seed), seed))
            (options.out / "table.md").write_text(table, "utf-8")
            print(table.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
