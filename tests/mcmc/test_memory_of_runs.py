# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The peak of a run's memory is what it keeps."""

from __future__ import annotations

import multiprocessing as mp
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_aeb as aeb

SIZE, CHAINS, DRAWS = 50_000, 2, 400


def read_peak() -> int:
    """Return the most bytes of memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def model(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([SIZE]).to_event(1))
    pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)


def run_mcmc(method: str, draws: int, checkpoint: Path | None = None) -> aeb.MCMC:
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), seed=0)
    options: dict[str, Any] = {"chain_method": method, "mp_context": "fork"}
    options |= {"checkpoint": checkpoint, "every": DRAWS // 2, "disable_progbar": True}
    mcmc = aeb.MCMC(kernel, draws, 0, num_chains=CHAINS, **options)
    mcmc.run(torch.zeros(SIZE))
    return mcmc


def measure(method: str, kept: str, folder: Path, results: Any) -> None:
    """Send by how much a run raises the peak, in units of its draws, and the bytes of these."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    checkpoint = None if kept == "memory" else folder / "run"
    if kept == "resumed":
        maker = mp.get_context("fork").Process(target=run_mcmc, args=(method, DRAWS, checkpoint))
        maker.start()
        maker.join()
    run_mcmc(method, 4, None if checkpoint is None else folder / "first")
    before = read_peak()
    if kept == "resumed":
        mcmc = aeb.MCMC.resume(checkpoint, model)
    else:
        mcmc = run_mcmc(method, DRAWS, checkpoint)
    draws = mcmc.get_samples()["w"]
    assert draws.shape == (CHAINS * DRAWS, SIZE)
    results.send(((read_peak() - before) / draws.nbytes, draws.nbytes))


CASES = [("sequential", "memory"), ("vectorized", "memory"), ("parallel", "memory")]
CASES += [("sequential", "checkpoint"), ("vectorized", "checkpoint"), ("vectorized", "resumed")]


@pytest.fixture
def results(case, tmp_path) -> Iterator[Any]:
    """What :func:`measure` sends, from a process that has done nothing else."""
    context = mp.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(*case, tmp_path, sender))
    process.start()
    sender.close()
    yield receiver
    process.kill()
    process.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_peak_is_at_most_a_tenth_above_what_is_kept(case, results):
    """160 MB of draws, in a process of its own, above what a run of a few draws has taken."""
    ratio, size = results.recv()  # EOFError where the process has failed: its error is above
    assert size == 160e6
    assert 0.9 < ratio <= 1.1
