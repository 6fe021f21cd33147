# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
``AEBKernel(model)``, with nothing set, beside NUTS on example models of Pyro and NumPyro.

    python -m tests.benchmarks.example_models --out docs/results/tuning

adds a row to ``examples.csv`` after every run and writes the latest rows to ``examples.md``. Both
are compared with a longer run of NUTS, for which centred hierarchies are reparametrised. Numbers
are those of unconstrained space, where a scale is its logarithm.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import biject_to

import pyro_aeb as aeb

Draws = Mapping[str, Tensor]


class Example(NamedTuple):
    """
    A model with its data.

    :param centred: site to the sites of its mean and scale, which the reference takes apart.
    """

    model: Callable[..., Any]
    arguments: tuple[Tensor, ...]
    centred: Mapping[str, tuple[str, str]] = {}


def baseball() -> Example:
    """Return ``partially_pooled_with_logit`` of Pyro's baseball.py, with its data."""
    hits = [18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]

    def model(at_bats: Tensor, hits: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("num_players", len(at_bats)):
            alpha = pyro.sample("alpha", dist.Normal(loc, scale))
            pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)

    data = torch.full((18,), 45.0), torch.tensor(hits, dtype=torch.float)
    return Example(model, data, {"alpha": ("loc", "scale")})


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools() -> Example:
    """Return the eight schools of Pyro's eight_schools/mcmc.py, which are not centred."""

    def model(sigma: Tensor, y: Tensor) -> None:
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)))
        tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)))
        pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)

    return Example(model, (ERRORS, EFFECTS))


def centred_schools() -> Example:
    """Return the eight schools of NumPyro's README, centred."""

    def model(sigma: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("J", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("obs", dist.Normal(theta, sigma), obs=y)

    return Example(model, (ERRORS, EFFECTS), {"theta": ("mu", "tau")})


def gaussian_process() -> Example:
    """Return NumPyro's gp.py, with data made in its manner."""
    generator = torch.Generator().manual_seed(0)
    X = torch.linspace(-1.0, 1.0, 25)
    Y = X + 0.2 * X**3 + 0.5 * (0.5 + X) ** 2 * torch.sin(4.0 * X)
    Y = Y + 0.15 * torch.randn(25, generator=generator)
    Y = (Y - Y.mean()) / Y.std(unbiased=False)

    def model(X: Tensor, Y: Tensor) -> None:
        var = pyro.sample("kernel_var", dist.LogNormal(0.0, 10.0))
        noise = pyro.sample("kernel_noise", dist.LogNormal(0.0, 10.0))
        length = pyro.sample("kernel_length", dist.LogNormal(0.0, 10.0))
        k = var * torch.exp(-0.5 * ((X[:, None] - X) / length) ** 2)
        k = k + (noise + 1e-6) * torch.eye(len(X))
        pyro.sample("Y", dist.MultivariateNormal(torch.zeros(len(X)), covariance_matrix=k), obs=Y)

    return Example(model, (X, Y))


def counts() -> Example:
    """Return a Poisson regression of 96 counts in 12 groups, whose intercepts are centred."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(12).repeat_interleave(8)
    x = torch.randn(96, generator=generator)
    intercept = 1.0 + 0.5 * torch.randn(12, generator=generator)
    y = torch.poisson(torch.exp(intercept[group] + 0.3 * x), generator=generator)

    def model(group: Tensor, x: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 12):
            intercept = pyro.sample("intercept", dist.Normal(mu, tau))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(torch.exp(intercept[group] + slope * x)), obs=y)

    return Example(model, (group, x, y), {"intercept": ("mu", "tau")})


def state_space() -> Example:
    """Return the linear state space of Pyro's forecasting_ii.ipynb, with 64 synthetic data."""
    generator = torch.Generator().manual_seed(0)
    state, series = torch.zeros(()), []
    for _ in range(64):
        state = 0.9 * state + 0.3 * torch.randn((), generator=generator)
        series.append(state + 0.2 * torch.randn((), generator=generator))

    def model(y: Tensor) -> None:
        timescale = pyro.sample("timescale", dist.LogNormal(math.log(24), 1.0))
        trans_scale = pyro.sample("trans_scale", dist.LogNormal(-0.5 * math.log(24), 1.0))
        obs_scale = pyro.sample("obs_scale", dist.LogNormal(-2.0, 1.0))
        hmm = dist.GaussianHMM(
            dist.Normal(0.0, 10.0).expand([1]).to_event(1),
            torch.exp(-1 / timescale)[..., None, None],
            dist.Normal(0.0, trans_scale.unsqueeze(-1)).to_event(1),
            torch.tensor([[1.0]]),
            dist.Normal(0.0, obs_scale.unsqueeze(-1)).to_event(1),
            duration=len(y),
        )
        pyro.sample("residual", hmm, obs=y)

    return Example(model, (torch.stack(series)[:, None],))


def mixture() -> Example:
    """
    Return the mixture of Pyro's gmm.ipynb, with 30 synthetic data instead of its five.

    Its prior of ``locs`` is the same for both components. Here it is not, to fix the labels.
    """
    generator = torch.Generator().manual_seed(0)
    data = torch.cat([torch.zeros(12), torch.full((18,), 10.0)])
    data = data + torch.randn(30, generator=generator)

    @config_enumerate
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.tensor([0.0, 10.0]), 3.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    return Example(model, (data,))


EXAMPLES: dict[str, Callable[[], Example]] = {
    "baseball, logits": baseball,
    "eight schools, Pyro's": schools,
    "eight schools, centred": centred_schools,
    "Gaussian process": gaussian_process,
    "hierarchical Poisson": counts,
    "linear state space": state_space,
    "mixture": mixture,
}


class Run(NamedTuple):
    """
    Draws of one run and what it cost.

    :param str told: kinds of the warnings given, or the error.
    """

    draws: Draws
    seconds: float
    told: str


def run_ours(example: Example, seed: int) -> Run:
    """Run our kernel with nothing set."""
    kernel = aeb.AEBKernel(example.model, seed=seed)
    mcmc = aeb.MCMC(kernel, 1000, 200, disable_progbar=True)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", aeb.TuningWarning)
        mcmc.run(*example.arguments)
    seconds = time.process_time() - started
    told = [kind(str(one.message)) for one in caught if issubclass(one.category, aeb.TuningWarning)]
    return Run(mcmc.get_samples(), seconds, "; ".join(told))


def kind(message: str) -> str:
    """Return the kind of a warning of tuning."""
    kinds = {"the kinetic temperature": "hot", "an independent draw": "slow"}
    return next((name for start, name in kinds.items() if message.startswith(start)), message[:40])


def run_nuts(example: Example, seed: int, samples: int = 1000, jit: bool = False) -> Run:
    """Run Pyro's NUTS."""
    pyro.set_rng_seed(seed)
    kernel = NUTS(example.model, jit_compile=jit, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, samples, 500, disable_progbar=True)
    started = time.process_time()
    mcmc.run(*example.arguments)
    seconds = time.process_time() - started
    divergent = sum(map(len, mcmc.diagnostics()["divergences"].values()))
    return Run(mcmc.get_samples(), seconds, f"{divergent} divergent" if divergent else "")


def run_reference(example: Example, seed: int) -> Run:
    """Run NUTS for longer, on the model without its centred sites."""
    config = {site: LocScaleReparam(0.0) for site in example.centred}
    easy = example._replace(model=poutine.reparam(example.model, config=config))
    run = run_nuts(easy, seed, 2500, jit=True)
    draws = dict(run.draws)
    for site, (loc, scale) in example.centred.items():
        standard = draws.pop(f"{site}_decentered")
        draws[site] = draws[loc][:, None] + draws[scale][:, None] * standard
    return run._replace(draws=draws)


def numbers(example: Example, draws: Draws) -> tuple[list[str], Tensor]:
    """Return names and draws of all numbers in unconstrained space, shape (n, M)."""
    names: list[str] = []
    columns = []
    model = poutine.condition(example.model, {name: value[0] for name, value in draws.items()})
    trace = poutine.trace(model).get_trace(*example.arguments)
    for name, site in trace.nodes.items():
        if name not in draws:
            continue
        free = biject_to(site["fn"].support).inv(draws[name].double())
        free = free.reshape(len(free), -1)
        size = free.shape[1]
        names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
        columns.append(free)
    return names, torch.cat(columns, 1)


class Row(NamedTuple):
    """
    Figures of a run beside the reference.

    :param float z: root mean square of the errors of means, in posterior sds.
    :param float worst_z: the largest.
    :param float error: the largest error of a mean in its own standard errors.
    """

    model: str
    sampler: str
    seed: int
    z: float = math.nan
    worst_z: float = math.nan
    worst: str = ""
    error: float = math.nan
    mean_ratio: float = math.nan
    least_ratio: float = math.nan
    largest_ratio: float = math.nan
    ess: float = math.nan
    seconds: float = math.nan
    told: str = ""

    @property
    def cost(self) -> float:
        """Seconds for 400 effective draws of the worst number."""
        return self.seconds * 400.0 / self.ess


def compare(name: str, sampler: str, seed: int, example: Example, run: Run, true: Run) -> Row:
    """Return the figures of a run."""
    names, draws = numbers(example, run.draws)
    _, reference = numbers(example, true.draws)
    sd = reference.std(0)
    z = (draws.mean(0) - reference.mean(0)) / sd
    ratio = draws.std(0) / sd
    ess = effective_sample_size(draws[None], 0, 1)
    noise = ratio.square() / ess + 1.0 / effective_sample_size(reference[None], 0, 1)
    figures = {
        "z": z.square().mean().sqrt(),
        "worst_z": z.abs().max(),
        "error": (z.abs() / noise.sqrt()).max(),
        "mean_ratio": ratio.mean(),
        "least_ratio": ratio.min(),
        "largest_ratio": ratio.max(),
        "ess": ess.min(),
    }
    values = {key: float(value) for key, value in figures.items()}
    worst = names[int(z.abs().argmax())]
    return Row(name, sampler, seed, worst=worst, seconds=run.seconds, told=run.told, **values)


HEADER = (
    "| model | sampler | seed | z | worst z | in errors | sd over reference | ESS | seconds | "
    "for 400 | told |\n"
    "| --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: | --- |\n"
)


def line(row: Row) -> str:
    """Return a row of the table."""
    if row.sampler == "reference":
        figures = f" | | | | {row.ess:.0f} | {row.seconds:.0f} |"
    elif math.isnan(row.ess):
        figures = " | | | | | |"
    else:
        ratios = f"{row.mean_ratio:.2f} [{row.least_ratio:.2f}, {row.largest_ratio:.2f}]"
        figures = (
            f"{row.z:.2f} | {row.worst_z:.2f} `{row.worst}` | {row.error:.1f} | {ratios} | "
            f"{row.ess:.0f} | {row.seconds:.0f} | {row.cost:.0f}"
        )
    return f"| {row.model} | {row.sampler} | {row.seed} | {figures} | {row.told} |\n"


def read(path: Path) -> list[Row]:
    """Return the latest row of every run in a file, in the order of the models."""
    rows: dict[tuple[str, str, int], Row] = {}
    kinds = get_type_hints(Row)
    with path.open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            row = Row(**{key: kinds[key](value) for key, value in cells.items()})
            rows[row.model, row.sampler, row.seed] = row
    order = list(EXAMPLES)
    return sorted(rows.values(), key=lambda row: (order.index(row.model), row.sampler, row.seed))


def write(folder: Path, row: Row) -> None:
    """Add a row to the file, and write the table."""
    path = folder / "examples.csv"
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(Row._fields)
        writer.writerow(f"{cell:.5g}" if isinstance(cell, float) else cell for cell in row)
    table = HEADER + "".join(map(line, read(path)))
    (folder / "examples.md").write_text(table, "utf-8")
    print(line(row), end="", flush=True)


def main() -> None:
    """Write the rows and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=int, nargs="*", default=list(range(len(EXAMPLES))))
    parser.add_argument("--seeds", type=int, nargs="*", default=[901, 902])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for place in options.models:
        name = list(EXAMPLES)[place]
        example = EXAMPLES[name]()
        true = run_reference(example, 900)
        write(options.out, compare(name, "reference", 900, example, true, true))
        for sampler, run in {"AEBKernel": run_ours, "NUTS": run_nuts}.items():
            for seed in options.seeds:
                try:
                    row = compare(name, sampler, seed, example, run(example, seed), true)
                except Exception as error:
                    told = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                    row = Row(name, sampler, seed, told=told)
                write(options.out, row)


if __name__ == "__main__":
    main()
