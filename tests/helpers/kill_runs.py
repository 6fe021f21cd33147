# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Kill a running job at random times, resume it each time, and compare it with an undisturbed run.

``python tests/helpers/kill_runs.py --kills 100`` distributes this number of kills (SIGKILL, which
no process can catch) over jobs of several kinds: sequential and vectorized chains, draws in memory
and in a Zarr trace, plates and a shuffling DataLoader, with and without a seed. A killed job is
resumed in a new process from its checkpoint, until it has finished. Its draws, statistics and
latents must then equal those of an undisturbed run, bit for bit. The exit code is 1 if any differ.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from loader_data import shuffling_loader
from models import loader_regression, sparse_regression
from runs import DATA, X, Y, copy_records, make_kernel, make_mcmc, resume_mcmc

import pyro_aeb as aeb

DRAWS, WARMUP, EVERY = 60, 10, 3


class Job(NamedTuple):
    """A run of two chains."""

    method: str
    trace: bool
    loader: bool
    seed: int | None

    @property
    def model(self) -> Any:
        return loader_regression if self.loader else sparse_regression


JOBS = (
    Job("sequential", trace=False, loader=True, seed=None),
    Job("vectorized", trace=True, loader=True, seed=None),
    Job("sequential", trace=True, loader=False, seed=7),
    Job("vectorized", trace=False, loader=False, seed=7),
)


def make_run(job: Job, folder: Path, kept: bool = True) -> aeb.MCMC:
    """Return the run before its start; with a checkpoint unless it will be undisturbed."""
    places: dict[str, Any] = {"checkpoint": folder / "run", "every": EVERY}
    if job.trace:
        places["trace"] = folder / "draws.zarr"
    kernel = make_kernel(job.model, seed=job.seed, pruning=aeb.MagnitudePruning(0.3, freeze=True))
    return make_mcmc(kernel, DRAWS, WARMUP, method=job.method, **(places if kept else {}))


def run_job(run: aeb.MCMC, job: Job, pause: float) -> None:
    def wait(*_: Any) -> None:
        time.sleep(pause)

    run._hook = wait if pause else None
    if job.loader:
        run.run(shuffling_loader())
    else:
        run.run(X, Y, **DATA)


def run_or_resume(job: Job, folder: Path, pause: float) -> None:
    """Start or resume the run, in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    exists = (folder / "run" / "run.pt").exists()
    run = resume_mcmc(folder / "run", job.model) if exists else make_run(job, folder)
    if not exists or min(run._counts()) < DRAWS:
        run_job(run, job, pause)


def run_undisturbed(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    """Return the records of an undisturbed run."""
    torch.manual_seed(3)
    run = make_run(job, folder, kept=False)
    run_job(run, job, 0.0)
    return copy_records(run)


def run_with_kills(
    job: Job, folder: Path, kills: int, moments: random.Random, context: Any
) -> tuple[int, dict[str, torch.Tensor]]:
    """Return how often the run was killed, and its final records."""
    pause = 0.005
    longest = pause * (DRAWS + WARMUP) * (1 if job.method == "vectorized" else 2)
    done = 0
    while True:
        process = context.Process(target=run_or_resume, args=(job, folder, pause))
        process.start()
        if done < kills:
            # Short enough for the run not to finish before its last kill.
            process.join(moments.uniform(0.0, 1.5 * longest / (kills + 1)))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            break
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"{job}: a process ended with exit code {process.exitcode}")
        done += 1
    return done, copy_records(resume_mcmc(folder / "run", job.model))


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    names = sorted({*found, *expected})
    return [
        name
        for name in names
        if name not in found
        or name not in expected
        or found[name].dtype != expected[name].dtype
        or not torch.equal(found[name], expected[name])
    ]


def trial(job: Job, kills: int, moments: random.Random, context: Any) -> tuple[int, list[str]]:
    """Return how often a job was killed, and the names of the final records that differ."""
    folder = Path(tempfile.mkdtemp())
    try:
        done, found = run_with_kills(job, folder, kills, moments, context)
        return done, differences(found, run_undisturbed(job, folder))
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="total number of kills (default 100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the times (default 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    moments = random.Random(options.seed)
    context = mp.get_context("fork")  # starts a process within milliseconds
    total, runs, wrong = 0, 0, 0
    while total < options.kills:
        job = JOBS[runs % len(JOBS)]
        done, differ = trial(job, min(5, options.kills - total), moments, context)
        total, runs, wrong = total + done, runs + 1, wrong + bool(differ)
        print(
            f"{job}: {done} kills, {'the same' if not differ else f'differ: {differ}'}", flush=True
        )
    print(f"{total} kills in {runs} runs; {runs - wrong} runs equal undisturbed runs")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
