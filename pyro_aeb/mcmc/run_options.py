# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of the options of a run, and those that are taken by default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.goal import LIMIT, WARMUP, Goal
from pyro_aeb.validation import choice, count

ChainMethod = Literal["sequential", "vectorized", "parallel", "distributed"]


def default_method(kernel: AEBKernel, chains: int) -> ChainMethod:
    """Return how chains run where the option is not given."""
    if kernel.data_parallel:
        return "sequential"
    return "parallel" if 1 < chains < torch.multiprocessing.cpu_count() else "sequential"


def run_lengths(goal: Goal | None, samples: int | None, warmup: int | None) -> tuple[int, int]:
    """Return the draws of a chain and of its warm-up."""
    if samples is None and goal is not None:
        samples = LIMIT
    samples = count("num_samples", samples, "or ess=400, which needs none")
    if warmup is None:
        return samples, samples if goal is None else min(samples, WARMUP)
    return samples, count("warmup_steps", warmup, least=0)


def check_ranks(kernel: AEBKernel, chain_method: Any, trace: Any, goal: Goal | None) -> None:
    """
    Check the options that several processes share.

    :raises ValueError: if two exclude each other.
    """
    if goal is not None and (kernel.data_parallel or chain_method == "distributed"):
        raise ValueError(
            f"ess is {goal.ess:g}, and the processes of a run of several would have to agree on "
            "when it ends; give num_samples, look at aeb.check(mcmc), and call run() again, which "
            "adds draws"
        )
    if kernel.data_parallel and chain_method in ("parallel", "distributed"):
        raise ValueError(
            f"chain_method is {chain_method!r} and the kernel has data_parallel=True, by which "
            "all processes run every chain together; use one of the two"
        )
    if trace is not None and (kernel.data_parallel or chain_method == "distributed"):
        raise ValueError(
            f"trace is {str(trace)!r}, and a file of draws is written by one process only; use "
            "checkpoint= in a run of several"
        )


def check_run_options(initial_params: Any, hook_fn: Any, mp_context: Any, **paths: Any) -> None:
    """
    Check options of Python objects, and paths.

    :param paths: option to path, or None.
    :raises TypeError: if one is of the wrong kind.
    :raises ValueError: if ``mp_context`` is unknown.
    """
    if initial_params is not None and not (
        isinstance(initial_params, Mapping)
        and all(isinstance(value, Tensor) for value in initial_params.values())
    ):
        raise TypeError(
            f"initial_params is {initial_params!r}, expected site names to tensors, in "
            "unconstrained space"
        )
    if hook_fn is not None and not callable(hook_fn):
        raise TypeError(
            f"hook_fn is {hook_fn!r}, expected a function hook_fn(kernel, draw, stage, i)"
        )
    choice("mp_context", mp_context, Literal["fork", "spawn", "forkserver"], optional=True)
    for name, path in paths.items():
        if path is not None and not (isinstance(path, (str, os.PathLike)) and os.fspath(path)):
            raise TypeError(f"{name} is {path!r}, expected a path")
