# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of a function on every rank of a process group (gloo, on this machine)."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 120.0
"""Time limit after which the processes are killed and the test fails."""


def run_on_ranks(
    program: Callable[..., Any], folder: Path, *args: Any, world: int = 2
) -> list[Any]:
    """
    Run ``program(rank, *args)`` on every rank and return the results: an error if it raised one,
    None if the rank was killed.

    :param Path folder: an empty folder.
    """
    context = mp.get_context("forkserver")  # imports once for all processes
    folder.mkdir(exist_ok=True)
    processes = [
        context.Process(target=_run, args=(program, rank, world, str(folder), args), daemon=True)
        for rank in range(world)
    ]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(end - time.monotonic(), 0.0))
        assert not any(process.is_alive() for process in processes), "a rank hangs"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [_result(folder / f"result-{rank}.pt") for rank in range(world)]


def _result(path: Path) -> Any:
    return torch.load(path, weights_only=False) if path.exists() else None


def _run(
    program: Callable[..., Any], rank: int, world: int, folder: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        result = program(rank, *args)
    except BaseException as error:
        traceback.print_exc()
        result = error
    torch.save(result, f"{folder}/result-{rank}.pt")
    if not isinstance(result, BaseException):
        dist.destroy_process_group()
