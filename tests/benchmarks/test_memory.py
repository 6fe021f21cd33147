# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a chain holds in memory.

    python -m pytest tests/benchmarks/test_memory.py -s
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_aeb as aeb

from . import long_run, memory
from .workloads import dense_network

ROOT = Path(__file__).resolve().parents[2]

BYTES = 20.0
"""The most a sparse weight may take beyond the weight itself."""

TENSOR = 64
"""Bytes of the smallest storage that torch allocates."""


@pytest.mark.parametrize("pruning", [None, aeb.MagnitudePruning(0.9)], ids=["dense", "pruned"])
def test_a_chain_steps_on_few_numbers_a_weight(pruning):
    """What it records of its draws is printed only: how much that is, ``save`` says."""
    workload = dense_network()
    kernel = workload.kernel(pruning=pruning)
    kernel.sample(kernel.initial_params)
    chain = kernel.chain
    everything = list(memory.tensors(chain))
    records = list(memory.tensors([chain.recording, chain.last_draw]))
    network = 4 * sum(p.numel() for p in workload.network.parameters())
    sparse = sum(p.numel() for n, p in workload.network.named_parameters() if n in workload.sparse)
    step = (memory.bytes_of(everything, but=[workload.x, workload.y, *records]) - network) / sparse
    record = memory.bytes_of(records) / sparse
    print(
        f"\nM: {step:.2f} bytes a sparse weight beyond the weight itself, {record:.2f} in records"
    )
    assert step <= BYTES


def test_memory_counts_a_storage_once_and_finds_what_closures_hold():
    x, y = torch.zeros(10), torch.zeros(100)
    held = memory.tensors({"views": [x[:3], x[3:]], "closure": lambda: y})
    assert memory.bytes_of(held) == 4 * 110
    assert memory.bytes_of([x, y], but=[y[1:]]) == 40


@pytest.mark.slow
def test_memory_is_bounded_over_many_steps():
    """Less grows in 27,000 steps than the smallest tensor a step would."""
    command = [sys.executable, "-m", "tests.benchmarks.long_run"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    steps, growth = map(int, run.stdout.split())
    assert steps == long_run.STEPS == 30_000
    assert growth <= TENSOR * (long_run.DRAWS - long_run.WARM) * long_run.STEPS_PER_DRAW
