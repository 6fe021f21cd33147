# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The peak of a run's memory is what it keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import sys, warnings
from pathlib import Path

import pyro, pyro.distributions as dist, torch
import pyro_aeb as aeb

warnings.simplefilter("ignore")
method, kept, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
SIZE, CHAINS, DRAWS = 50_000, 2, 400
torch.set_num_threads(1)


def peak(name="VmHWM"):
    (line,) = [l for l in open("/proc/self/status") if l.startswith(name)]
    return int(line.split()[1]) * 1024


def model(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([SIZE]).to_event(1))
    pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)


def run(draws, checkpoint=None):
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), seed=0)
    mcmc = aeb.MCMC(
        kernel, draws, 0, num_chains=CHAINS, chain_method=method, disable_progbar=True,
        checkpoint=checkpoint, every=DRAWS // 2, mp_context="spawn",
    )
    mcmc.run(torch.zeros(SIZE))
    return mcmc


def make(folder):
    run(DRAWS, folder)


if __name__ == "__main__":
    checkpoint = None if kept == "memory" else folder / "run"
    if kept == "resumed":
        maker = torch.multiprocessing.get_context("spawn").Process(target=make, args=(checkpoint,))
        maker.start()
        maker.join()
    run(4, None if checkpoint is None else folder / "first")
    before = peak()
    if kept == "resumed":
        mcmc = aeb.MCMC.resume(checkpoint, model)
    else:
        mcmc = run(DRAWS, checkpoint)
    draws = mcmc.get_samples()["w"]
    assert draws.shape == (CHAINS * DRAWS, SIZE)
    print((peak() - before) / draws.nbytes, draws.nbytes)
"""


CASES = [("sequential", "memory"), ("vectorized", "memory"), ("parallel", "memory")]
CASES += [("sequential", "checkpoint"), ("vectorized", "checkpoint"), ("vectorized", "resumed")]


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Iterator[dict[tuple[str, str], subprocess.Popen[str]]]:
    """All cases side by side: each a process, most of whose time is importing torch."""
    program = tmp_path_factory.mktemp("program") / "program.py"
    program.write_text(PROGRAM)
    started = {
        case: subprocess.Popen(
            [sys.executable, program, *case, tmp_path_factory.mktemp("run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        for case in CASES
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_peak_is_at_most_a_tenth_above_what_is_kept(case, programs):
    """160 MB of draws, in a process of its own, above what a run of a few draws has taken."""
    out, errors = programs[case].communicate()
    assert programs[case].returncode == 0, errors
    ratio, size = map(float, out.split())
    assert size == 160e6
    assert 0.9 < ratio <= 1.1
