# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Jobs that are killed lose nothing; ``tests/helpers/kill_runs.py`` does it a hundred times."""

from __future__ import annotations

import multiprocessing as mp
import random

import pytest
from kill_runs import JOBS, trial

pytest.importorskip("zarr")


@pytest.mark.parametrize(
    "job", JOBS, ids=lambda job: f"{job.method}-{'trace' if job.trace else 'memory'}"
)
def test_a_run_that_is_killed_five_times_ends_as_if_left_alone(job):
    kills, differ = trial(job, 5, random.Random(1), mp.get_context("fork"))
    assert kills > 0
    assert not differ
