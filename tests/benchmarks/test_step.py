# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step costs, as a multiple of forward + backward alone.

    python -m pytest tests/benchmarks --benchmark-enable -s

The two are timed in turn, a few steps each, and the ratio is taken turn by turn, so that it holds
when the machine's speed drifts; its median and quartiles are printed. Time a quiet machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pyro
import pytest
import torch

from .workloads import Workload, linear, network

TURNS = 60

# Workload, the most that a step may cost, calls a turn.
CASES = {
    "linear p=1000 n=100": (lambda: linear(None), 6.0, 50),
    "linear p=1000 n=100 batch 50": (lambda: linear(50), 6.0, 50),
    "mlp 478k batch 100": (network, 4.5, 5),
}


@pytest.fixture(autouse=True)
def as_in_mcmc():
    """Two threads and no validation, as pyro.infer.MCMC runs by default."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with pyro.validation_enabled(False):
        yield
    torch.set_num_threads(threads)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds a call, on average."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def paired_ratios(workload: Workload, repeats: int) -> list[float]:
    """step / alone, turn by turn."""
    seconds(workload.step, repeats), seconds(workload.alone, repeats)
    return [
        seconds(workload.step, repeats) / seconds(workload.alone, repeats) for _ in range(TURNS)
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_a_small_multiple_of_forward_and_backward(case, benchmark):
    make, bound, repeats = CASES[case]
    workload = make()
    benchmark(workload.step)
    if benchmark.disabled:
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    low, median, high = statistics.quantiles(paired_ratios(workload, repeats), n=4)
    benchmark.extra_info["ratio"] = round(median, 2)
    print(f"\n{case}: step / (forward + backward) = {median:.2f} [{low:.2f}, {high:.2f}]")
    assert median <= bound
