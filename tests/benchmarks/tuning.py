# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
``AEBKernel(model)``, with nothing set, beside exact posteriors and NUTS.

    python -m tests.benchmarks.tuning --out docs/results/tuning

writes ``rows.csv``, a row for every run as it ends, and from it ``table.md`` and ``nuts.md``. It
takes some thirty minutes of one core. Runs whose rows are there are not made again; ``--beds``,
``--seeds`` and ``--methods`` take a part.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pyro.ops.stats import effective_sample_size  # noqa: E402
from torch import Tensor  # noqa: E402

import pyro_aeb as aeb  # noqa: E402

from . import nuts  # noqa: E402
from .beds import BEDS, Bed  # noqa: E402

SAMPLES = 1000
OURS, PYRO, NUMPYRO = METHODS = ("AEBKernel(model)", "Pyro's NUTS", "NumPyro's NUTS")
LIMITS = {"z": 0.1, "ratio": 0.05}
"""From where on a run without a warning is a silent failure: of z, and of the mean ratio of sds."""


class Row(NamedTuple):
    """
    Figures of one run.

    :param z: root mean square error of the posterior means, in exact sds.
    :param mean_ratio: mean over weights of their sd over the exact one; then the extremes.
    :param heat: kinetic temperature of the hottest site in the pilot.
    :param ess: effective sample size of the worst weight.
    :param seconds: of processor time, warm-up and compilation included.
    :param warnings: the number of :class:`pyro_aeb.errors.TuningWarning`.
    """

    bed: str
    seed: int
    method: str
    z: float
    mean_ratio: float
    least_ratio: float
    largest_ratio: float
    ess: float
    seconds: float
    heat: float = float("nan")
    steps: float = float("nan")
    warnings: float = float("nan")


def measure(name: str, seed: int, method: str) -> Row:
    """Run a method on a bed."""
    bed = BEDS[name](seed)
    started = time.process_time()
    own: dict[str, float] = {}
    try:
        if method == OURS:
            draws, own = run_ours(bed, seed)
        else:
            run = nuts.run_pyro if method == PYRO else nuts.run_numpyro
            draws = run(bed, seed, SAMPLES)
    except aeb.NonFiniteError:  # the run has stopped, and said so
        draws = torch.full((1, len(bed.mean)), float("nan"))
    seconds = time.process_time() - started
    draws = draws.double()
    nan, z = float("nan"), (draws.mean(0) - bed.mean) / bed.sd
    ratio = draws.std(0) / bed.sd
    return Row(
        bed=name,
        seed=seed,
        method=method,
        z=float(z.square().mean().sqrt()),
        mean_ratio=float(ratio.mean()),
        least_ratio=float(ratio.min()),
        largest_ratio=float(ratio.max()),
        ess=float(effective_sample_size(draws[None], 0, 1).min()) if len(draws) > 1 else nan,
        seconds=seconds,
        **own,
    )


def run_ours(bed: Bed, seed: int) -> tuple[Tensor, dict[str, float]]:
    """Run the kernel with nothing set."""
    kernel = aeb.AEBKernel(bed.model, seed=seed)
    run = aeb.MCMC(kernel, SAMPLES, 200, disable_progbar=True, initial_params=bed.start)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", aeb.TuningWarning)
        run.run(*bed.arguments)
    told = [warning for warning in caught if issubclass(warning.category, aeb.TuningWarning)]
    heat = max(kernel.tuning.kinetic_temperature.values())
    own = {"heat": heat, "steps": kernel.chain.step, "warnings": len(told)}
    return bed.draws(run.get_samples()), own


def is_silent(row: Row) -> bool:
    """Return whether a run is wrong and does not say so."""
    wrong = row.z > LIMITS["z"] or abs(row.mean_ratio - 1.0) > LIMITS["ratio"]
    return wrong and row.warnings == 0


def against_exact(rows: list[Row]) -> str:
    """Return the table of our runs, a line for every bed."""
    table = (
        "| bed | runs | stopped | z, mean | largest | sd over exact | of weights | KT, largest "
        "| ESS, median | steps | seconds | runs with warnings | silent failures |\n"
        f"| --- {'| ---: ' * 12}|\n"
    )
    for name in BEDS:
        own = [row for row in rows if row.bed == name and row.method == OURS]
        if not own:
            continue
        ended = [row for row in own if not np.isnan(row.z)]
        of = {field: np.array([getattr(row, field) for row in ended]) for field in Row._fields[3:]}
        if not ended:
            table += f"| {name} | {len(own)} | {len(own)} {'| – ' * 11}|\n"
            continue
        table += (
            f"| {name} | {len(own)} | {len(own) - len(ended)} | {of['z'].mean():.3f} | "
            f"{of['z'].max():.3f} | {of['mean_ratio'].mean():.3f} | "
            f"{of['least_ratio'].min():.2f} to {of['largest_ratio'].max():.2f} | "
            f"{of['heat'].max():.2f} | {np.median(of['ess']):.0f} | "
            f"{np.median(of['steps']):,.0f} | {np.median(of['seconds']):.0f} | "
            f"{(of['warnings'] > 0).sum()} | {sum(map(is_silent, own))} |\n"
        )
    return table


def against_nuts(rows: list[Row]) -> str:
    """Return the table of seconds for 400 effective draws, median over seeds, and of z."""
    table = f"| bed | {' | '.join(METHODS)} |\n| --- {'| ---: ' * len(METHODS)}|\n"
    for name in BEDS:
        cells = []
        for method in METHODS:
            ended = [
                row
                for row in rows
                if row.bed == name and row.method == method and not np.isnan(row.z)
            ]
            if not ended:
                cells.append("–")
                continue
            seconds = np.median([400.0 / row.ess * row.seconds for row in ended])
            z = np.mean([row.z for row in ended])
            cells.append(f"{seconds:.1f} (z {z:.3f}, {len(ended)} runs)")
        if any(cell != "–" for cell in cells[1:]):
            table += f"| {name} | {' | '.join(cells)} |\n"
    return table


def read(path: Path) -> list[Row]:
    """Return the rows that are there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    texts = ("bed", "seed", "method")
    return [
        Row(row["bed"], int(row["seed"]), row["method"], **{
            key: float(value) for key, value in row.items() if key not in texts
        })
        for row in found
    ]  # fmt: skip


def write(rows: list[Row], folder: Path) -> None:
    """Write the rows and the tables."""
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([f"{v:.5g}" if isinstance(v, float) else v for v in row] for row in rows)
    (folder / "table.md").write_text(against_exact(rows), "utf-8")
    (folder / "nuts.md").write_text(against_nuts(rows), "utf-8")


def main() -> None:
    """Make the runs, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--beds", type=int, nargs="*", default=list(range(len(BEDS))))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(901, 911)))
    parser.add_argument("--methods", nargs="*", default=[OURS], choices=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = read(options.out / "rows.csv")
    done = {(row.bed, row.seed, row.method) for row in rows}
    for seed in options.seeds:
        for name in (list(BEDS)[place] for place in options.beds):
            for method in options.methods:
                batched = method != OURS and BEDS[name](seed).batched
                if (name, seed, method) not in done and not batched:
                    rows.append(measure(name, seed, method))
                    write(rows, options.out)
                    print(rows[-1], flush=True)
    write(rows, options.out)


if __name__ == "__main__":
    main()
