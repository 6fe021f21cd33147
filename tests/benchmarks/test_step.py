# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The most that a step may cost, beside forward and backward alone or beside BlackJAX.

    python -m pytest tests/benchmarks/test_step.py --benchmark-enable -s

Time a quiet machine. ``python -m tests.benchmarks.table`` has the same figures beside those of
others.
"""

from __future__ import annotations

import pytest

from . import figures, table
from .rows import ROWS


@pytest.mark.parametrize(("workload", "row", "other", "most"), figures.BOUNDS)
def test_a_step_costs_a_small_multiple(workload, row, other, most, request, tmp_path):
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    if not ROWS[other].installed:
        pytest.skip(f"{ROWS[other].package} is not installed")
    names = ["--workloads", workload, "--rows", row, other, "--threads", "1"]
    table.main([*names, "--out", str(tmp_path)])
    _, median, _ = figures.read(tmp_path).ratio(workload, 1, row, other)
    assert median <= most
