# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Chains distributed over the ranks of a process group."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro_runs import DATA, X, Y, assert_same_draws, make_kernel, samples_by_chain
from rank_runs import SECONDS, run_on_ranks

import pyro_aeb as aeb

ROOT = Path(__file__).resolve().parents[2]
CHAINS = 3
"""Two on rank 0, one on rank 1."""


def make_distributed_mcmc(kernel=None, **options) -> aeb.MCMC:
    options = {"num_chains": CHAINS, "disable_progbar": True, **options}
    return aeb.MCMC(kernel or make_kernel(), 6, 3, **{"chain_method": "distributed", **options})


def make_sequential_mcmc(**options) -> aeb.MCMC:
    return make_distributed_mcmc(chain_method="sequential", **options)


def copy_draws(draws: dict) -> dict:
    return {name: values.clone() for name, values in draws.items()}


@pytest.fixture(scope="module")
def sequential_run() -> tuple[dict, dict, Any]:
    """Draws of a run in one process, those after its extension, and the first for ArviZ."""
    run = make_sequential_mcmc()
    run.run(X, Y, **DATA)
    found, idata = copy_draws(samples_by_chain(run)), aeb.to_arviz(run)
    run.run(X, Y, **DATA)
    return found, samples_by_chain(run), idata


# -- a run that nothing happens to


def two_runs(rank: int, folder: str) -> Any:
    run = make_distributed_mcmc(checkpoint=f"{folder}/run", every=2)
    run.run(X, Y, **DATA)
    found, idata = copy_draws(samples_by_chain(run)), aeb.to_arviz(run)
    run.run(X, Y, **DATA)
    fewer = make_distributed_mcmc(num_chains=1)  # than ranks
    fewer.run(X, Y, **DATA)
    assert_same_draws(samples_by_chain(fewer), {name: values[:1] for name, values in found.items()})
    alike = make_distributed_mcmc(make_kernel(seed=None))
    pyro.set_rng_seed(0)
    alike.run(X, Y, **DATA)
    after = torch.rand(())
    with pytest.raises(ValueError, match="the same on all"):
        make_distributed_mcmc().run(X + rank, Y, **DATA)
    return found, samples_by_chain(run), idata, samples_by_chain(alike), after


@pytest.fixture(scope="module")
def rank_results(tmp_path_factory) -> tuple[list, Any]:
    folder = tmp_path_factory.mktemp("ran")
    found = run_on_ranks(two_runs, folder, str(folder))
    for result in found:
        assert not isinstance(result, BaseException), result
    return found, folder / "run"


def test_draws_are_those_of_chains_one_after_the_other(rank_results, sequential_run):
    for first, _, *_ in rank_results[0]:
        assert_same_draws(first, sequential_run[0])


def test_a_second_run_continues(rank_results, sequential_run):
    for _, second, *_ in rank_results[0]:
        assert_same_draws(second, sequential_run[1])


def test_every_rank_has_one_arviz_object_of_all_chains(rank_results, sequential_run):
    expected = sequential_run[2]
    for _, _, found, *_ in rank_results[0]:
        for group in ("posterior", "sample_stats", "adaptation"):
            assert found[group].sizes == expected[group].sizes
            for name, values in expected[group].data_vars.items():
                np.testing.assert_array_equal(found[group][name].values, values.values)


def test_without_a_seed_chains_differ_although_ranks_begin_with_the_same_random_numbers(
    rank_results,
):
    for *_, alike, after in rank_results[0]:
        first, second, third = alike["beta"]
        assert (first != second).all() and (first != third).all() and (second != third).all()
        assert after == rank_results[0][0][-1]


def test_a_checkpoint_is_read_without_a_process_group(rank_results, sequential_run):
    run = aeb.MCMC.resume(rank_results[1], make_kernel().model, disable_progbar=True)
    assert_same_draws(samples_by_chain(run), sequential_run[1])
    with pytest.raises(RuntimeError, match="torchrun --nproc_per_node 2 program.py"):
        run.run(X, Y, **DATA)


# -- a run that something happens to


def hook_at_draw_5_of_chain_1(what):
    """Return a hook that calls a function."""

    def hook(kernel, draw, stage, i):
        if stage == "Sample [1]" and i == 1:
            what()

    return hook


def fail():
    raise OSError("no space left")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def broken_run(rank: int, folder: str, what) -> Any:
    run = make_distributed_mcmc(checkpoint=folder, every=2, hook_fn=hook_at_draw_5_of_chain_1(what))
    try:
        run.run(X, Y, **DATA)
    except BaseException as error:
        return error, run.get_samples()["beta"]
    return None


def resume_run(rank: int, folder: str) -> dict:
    run = aeb.MCMC.resume(folder, make_kernel().model, disable_progbar=True)
    run.run(X, Y, **DATA)
    return samples_by_chain(run)


@pytest.mark.parametrize("what", [fail, interrupt, kill], ids=lambda what: what.__name__)
def test_a_rank_that_stops_loses_nothing(tmp_path, sequential_run, what):
    folder = tmp_path / "run"
    other, stopped = run_on_ranks(broken_run, tmp_path / "broken", str(folder), what)
    error, draws = other
    assert isinstance(error, aeb.RankError)
    if what is kill:
        assert stopped is None and "another rank ended" in str(error)
        assert len(draws) == 12  # of chains 0 and 2
    else:
        assert isinstance(stopped[0], OSError if what is fail else KeyboardInterrupt)
        assert f"rank 1 stopped: {type(stopped[0]).__name__}" in str(error)
        assert len(draws) == len(stopped[1]) == 14  # and two of chain 1, on both ranks
    for found in run_on_ranks(resume_run, tmp_path / "resumed", str(folder)):
        assert_same_draws(found, sequential_run[0])


def cut_short_run(rank: int, folder: str) -> list[int]:
    """Chains 0 and 2 have ended, and chain 1 has two draws."""
    run = make_distributed_mcmc(
        checkpoint=f"{folder}/run", every=2, hook_fn=hook_at_draw_5_of_chain_1(fail)
    )
    with pytest.raises(aeb.RankError if rank == 0 else OSError):
        run.run(X, Y, **DATA)
    return run._counts()


def resume_without_a_chain(rank: int, folder: str) -> str:
    """On three ranks with folders of their own: chain 2 was rank 0's, and is to be rank 2's."""
    own = Path(folder) / f"of-{rank}"
    shutil.copytree(Path(folder) / "run", own)
    if rank > 0:
        (own / "chain-2.pt").unlink()
    run = aeb.MCMC.resume(own, make_kernel().model, disable_progbar=True)
    with pytest.raises(ValueError) as info:
        run.run(X, Y, **DATA)
    return str(info.value)


def test_a_run_continues_on_another_number_of_ranks(tmp_path, sequential_run):
    assert run_on_ranks(cut_short_run, tmp_path / "two", str(tmp_path)) == [[6, 2, 6]] * 2
    for error in run_on_ranks(resume_without_a_chain, tmp_path / "apart", str(tmp_path), world=3):
        assert "rank 2 is to continue chain 2 and has 0 of its draws" in error
        assert "rank 0 has 9" in error and "one checkpoint folder" in error
    for world in (1, 3):
        folder = tmp_path / f"run-on-{world}"
        shutil.copytree(tmp_path / "run", folder)
        for found in run_on_ranks(resume_run, tmp_path / f"on-{world}", str(folder), world=world):
            assert_same_draws(found, sequential_run[0])


# -- as a reader runs it


@pytest.mark.slow
@pytest.mark.tutorial
def test_the_tutorial_says_the_same_on_one_process_and_on_two(tmp_path):
    script = str(ROOT / "tutorials" / "several_machines.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    started = [
        subprocess.Popen(
            [sys.executable, *program, "--smoke", "--out", str(tmp_path / f"on-{i}")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, program in enumerate(([script], [*torchrun, script]))
    ]
    tables = []
    for process in started:  # side by side: most of it is importing torch
        with process:
            out, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors[-3000:]
        title, *chains = out.split("one chain on")[0].splitlines()
        assert title == f"four chains on {len(tables) + 1} processes"
        tables.append(chains)
    assert tables[0] == tables[1] and len(tables[0]) == 6


# -- refused


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="torchrun --nproc_per_node 2 program.py"):
        make_distributed_mcmc().run(X, Y, **DATA)


def test_a_trace_is_refused(tmp_path):
    with pytest.raises(ValueError, match="written by one process only"):
        make_distributed_mcmc(trace=tmp_path / "run.zarr")
