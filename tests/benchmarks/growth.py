# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
How time and memory grow with a model, its data and a run, as one table.

    python -m tests.benchmarks.growth --out docs/results/growth

writes Markdown: for every axis (p, sites, N, draws, chains, groups) and every operation the
processor time and the peak of memory at three sizes, each twice the one before, and by how much the
last doubling multiplied both. A size runs in a process of its own. Time a quiet machine; it takes
about ten minutes. ``--smoke`` runs small sizes once, for nothing but to see that it runs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import pyro_aeb as aeb
from pyro_aeb.kernel.chain_state import state_of
from pyro_aeb.storage.checkpoint import from_bytes, to_bytes

ROOT = Path(__file__).resolve().parents[2]

OPERATIONS = {
    "setup": "setup",
    "step": "a step",
    "draw": "a step with its draw",
    "checkpoint": "the state in a checkpoint",
    "diagnostics": "`diagnostics()`",
    "to_arviz": "`to_arviz`",
    "check": "`aeb.check`",
}
"""Of which each axis has a row, and their titles."""


@dataclass(frozen=True)
class Axis:
    """
    What grows.

    :param title: of the axis, in the table.
    :param sizes: at which it is measured, each twice the one before.
    :param smoke: sizes for a smoke test.
    :param make: the model and its arguments at a size.
    :param draws: of the run.
    :param chains: of the run, which step together where there are several.
    """

    title: str
    sizes: tuple[int, int, int]
    smoke: tuple[int, int, int]
    make: Callable[[int], tuple[Callable[..., Any], tuple[Any, ...]]]
    draws: Callable[[int], int] = lambda size: 20
    chains: Callable[[int], int] = lambda size: 1


def regression(p: int, data: int, batch: int | None = None) -> Any:
    """A linear regression of ``data`` data on p features under SSGL."""
    x = torch.randn(data, p)
    y = x[:, 0] + torch.randn(data)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 2.0))
        delta = pyro.sample("delta", dist.Beta(2.0, 10.0))
        with pyro.plate("features", p):
            beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta, sigma2.sqrt()))
        with pyro.plate("data", data, subsample_size=batch) as i:
            pyro.sample("y", dist.Normal(x[i] @ beta, sigma2.sqrt()), obs=y[i])

    return model, (x, y)


def layers(count: int) -> Any:
    """A sum of ``count`` linear layers of 4 x 4 weights under SSGL, with one delta."""
    x, y = torch.randn(32, 4), torch.randn(32)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        delta = pyro.sample("delta", dist.Beta(2.0, 10.0))
        prior = aeb.SSGL(0.1, 10.0, delta, 1.0).expand([4, 4]).to_event(2)
        total = sum((x @ pyro.sample(f"w{i}", prior)).sum(-1) for i in range(count))
        with pyro.plate("data", 32):
            pyro.sample("y", dist.Normal(0.01 * total, 1.0), obs=y)

    return model, (x, y)


def regressions(count: int) -> Any:
    """``count`` regressions with a sigma and a delta each, the first of 20,000 weights."""
    x, wide, y = torch.randn(20, 5), torch.randn(20, 20_000), torch.randn(count, 20)

    def model(x: torch.Tensor, wide: torch.Tensor, y: torch.Tensor) -> None:
        for i in range(count):
            sigma2 = pyro.sample(f"sigma2_{i}", dist.InverseGamma(2.0, 2.0))
            delta = pyro.sample(f"delta_{i}", dist.Beta(2.0, 10.0))
            features = x if i else wide
            prior = aeb.SSGL(0.1, 10.0, delta, sigma2.sqrt())
            beta = pyro.sample(f"beta_{i}", prior.expand(features.shape[1:]).to_event(1))
            with pyro.plate(f"data_{i}", 20):
                pyro.sample(f"y_{i}", dist.Normal(features @ beta, sigma2.sqrt()), obs=y[i])

    return model, (x, wide, y)


AXES = {
    "p": Axis("weights p", (50_000, 100_000, 200_000), (10, 20, 40), lambda p: regression(p, 20)),
    "sites": Axis("sites (layers)", (250, 500, 1000), (2, 4, 8), layers),
    "N": Axis(
        "data N, batches of 100",
        (500_000, 1_000_000, 2_000_000),
        (200, 400, 800),
        lambda n: regression(5, n, 100),
    ),
    "draws": Axis(
        "draws, of 500 weights",
        (2500, 5000, 10_000),
        (10, 20, 40),
        lambda _: regression(500, 20),
        draws=lambda draws: draws,
    ),
    "chains": Axis(
        "chains that step together, of 500 weights",
        (64, 128, 256),
        (2, 4, 8),
        lambda _: regression(500, 20),
        chains=lambda chains: chains,
    ),
    "groups": Axis("groups: sigmas and deltas", (100, 200, 400), (2, 4, 8), regressions),
}


def memory(name: str) -> float:
    """MB of this process, ``VmRSS`` now or ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def peak(call: Callable[[], object]) -> float:
    """MB that a call adds to the process's memory at its peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is VmRSS from here on
    before = memory("VmRSS")
    call()
    return max(memory("VmHWM") - before, 0.0)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median processor time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(name: str, size: int, repeats: int) -> dict[str, tuple[float, float]]:
    """The seconds and MB of every operation at one size of an axis."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    warnings.simplefilter("ignore")
    _measure(AXES["p"], 4, 1)  # imports and first calls
    return _measure(AXES[name], size, repeats)


def _measure(axis: Axis, size: int, repeats: int) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    model, args = axis.make(size)
    chains, draws = axis.chains(size), axis.draws(size)
    adaptation = aeb.StochasticApproximation(aeb.Polynomial(1.0, 100.0, 0.7))
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-9), adaptation=adaptation, seed=0, compile=False)
    numbers = tuple(range(chains)) if chains > 1 else 0

    def start() -> None:
        kernel.start(0, numbers, args, {})

    def state() -> None:
        from_bytes(to_bytes(state_of(kernel.chain)), "state")

    found = {"setup": (seconds(start, repeats), peak(start))}
    kernel.advance(2)
    of_draws = [seconds(lambda: kernel.advance(1), 5) for _ in range(repeats)]
    of_steps = [seconds(lambda: kernel.advance(11), 1) for _ in range(repeats)]
    draw = statistics.median(of_draws)
    found["step"] = (
        (statistics.median(of_steps) - draw) / 10,
        peak(lambda: kernel.advance(2)),
    )
    found["draw"] = draw, peak(lambda: kernel.advance(1))
    found["checkpoint"] = seconds(state, repeats), peak(state)
    mcmc = aeb.MCMC(
        kernel, draws, 0, num_chains=chains, disable_progbar=True,
        chain_method="vectorized" if chains > 1 else "sequential",
    )  # fmt: skip
    mcmc.run(*args)
    calls: dict[str, Callable[[], object]] = {
        "diagnostics": mcmc.diagnostics,
        "to_arviz": lambda: aeb.to_arviz(mcmc),
        "check": lambda: aeb.check(mcmc, quiet=True),
    }
    for name, call in calls.items():
        found[name] = seconds(call, repeats), peak(call)
    return found


def rows(name: str, smoke: bool) -> list[str]:
    """The rows of an axis."""
    axis, repeats = AXES[name], 1 if smoke else 3
    sizes = axis.smoke if smoke else axis.sizes
    found = [_in_process(name, size, repeats) for size in sizes]
    lines = [f"| **{axis.title}** | {' / '.join(f'{size:,}' for size in sizes)} | | | |"]
    for operation, title in OPERATIONS.items():
        times, sizes_of = zip(*(each[operation] for each in found), strict=True)
        lines.append(
            f"| {title} | {_numbers([1e3 * t for t in times])} | {_ratio(times, 0.0)} | "
            f"{_numbers(sizes_of)} | {_ratio(sizes_of, 2.0)} |"
        )
    return lines


def _in_process(name: str, size: int, repeats: int) -> dict[str, tuple[float, float]]:
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--measure", name, str(size)]
    command.append(str(repeats))
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def _numbers(values: Sequence[float]) -> str:
    return " / ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)


def _ratio(values: Sequence[float], least: float) -> str:
    """By how much the last doubling multiplied a figure, unless it is at most ``least``."""
    return f"{values[-1] / values[-2]:.2f}" if min(values[-2:]) > least else "–"


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs the command; returns the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--out", type=Path, help="a folder for table.md")
    parser.add_argument("--smoke", action="store_true", help="small sizes, once")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        name, size, repeats = options.measure
        print(json.dumps(measure(name, int(size), int(repeats))))
        return ""
    lines = [
        "| | ms of processor time | last doubling | MB at the peak | last doubling |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    for name in options.axes:
        lines += rows(name, options.smoke)
        print("\n".join(lines[-len(OPERATIONS) - 1 :]), flush=True)
    machine = f"{platform.machine()}, torch {torch.__version__}, one thread, Python"
    text = "\n".join(lines) + f"\n\n{machine} {platform.python_version()}.\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
