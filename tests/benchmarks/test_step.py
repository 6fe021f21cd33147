# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step costs, as a multiple of forward + backward alone, and the most that it may cost.

    python -m pytest tests/benchmarks/test_step.py --benchmark-enable -s

The quartiles over turns are printed. Time a quiet machine. ``python -m tests.benchmarks.table`` has
the same figures beside those of others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import pyro_aeb as aeb

from .peers import ours
from .timing import Timing
from .workloads import WORKLOADS, linear

pytestmark = [
    pytest.mark.usefixtures("as_in_mcmc"),
    # What was not compiled is not timed as if it were.
    pytest.mark.filterwarnings("error::pyro_aeb.errors.CompileWarning"),
]

PRUNED: dict[str, Any] = {"pruning": aeb.MagnitudePruning(0.9)}
UPDATE: dict[str, Any] = {"compile": "update"}
ALL: dict[str, Any] = {"compile": "all"}
THREE_POINT: dict[str, Any] = {"noise": "three-point"}

# Workload, the kernel's options, the most that a step may cost; turns, and calls a turn.
CASES = {
    "L": (linear, {}, 4.5, 60, 50),
    "L in batches of 50": (partial(linear, 50), {}, 6.0, 60, 50),
    "M": (WORKLOADS["M"], {}, 4.0, 60, 5),
    "C": (WORKLOADS["C"], {}, 1.12, 40, 1),
    "R": (WORKLOADS["R"], {}, 1.05, 20, 1),
    "R, 90 % pruned at every step": (WORKLOADS["R"], PRUNED, 1.15, 20, 1),
    "L, compiled update": (linear, UPDATE, 3.5, 60, 50),
    "M, compiled update": (WORKLOADS["M"], UPDATE, 3.0, 60, 5),
    "M, compiled update, three-point noise": (WORKLOADS["M"], UPDATE | THREE_POINT, 2.2, 60, 5),
    "R, compiled update": (WORKLOADS["R"], UPDATE, 1.03, 20, 1),
    "L, all compiled": (linear, ALL, 3.5, 60, 50),
    "M, all compiled": (WORKLOADS["M"], ALL, 3.0, 60, 5),
    "M, all compiled, three-point noise": (WORKLOADS["M"], ALL | THREE_POINT, 2.2, 60, 5),
    "R, all compiled": (WORKLOADS["R"], ALL, 1.03, 20, 1),
}

SHORT = ("L", "L in batches of 50", "M")
"""What runs, untimed, with the other tests."""


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_a_small_multiple_of_forward_and_backward(case, benchmark):
    workload, options, bound, turns, calls = CASES[case]
    if benchmark.disabled and case not in SHORT:
        pytest.skip("takes long without telling anything, but with --benchmark-enable")
    peer = ours.start(workload(), **options)
    benchmark.pedantic(peer.step, rounds=3, warmup_rounds=1)
    if benchmark.disabled:
        pytest.skip("a ratio is measured only where benchmarks are, with --benchmark-enable")
    timing = Timing()
    timing.take_turns(peer, turns, calls)
    low, median, high = timing.ratio()
    benchmark.extra_info["ratio"] = round(median, 3)
    step, alone = timing.milliseconds()
    print(
        f"\n{case}: step / (forward + backward) = {median:.3f} [{low:.3f}, {high:.3f}], "
        f"{step:.3g} ms / {alone:.3g} ms"
    )
    assert median <= bound
