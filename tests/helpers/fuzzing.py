# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Settings and strategies of tests on arbitrary input.

In the suite examples are few and the same in every run: they follow from the code of the test. A
deep run tries many, different ones each time; hypothesis prints the smallest that fails::

    HYPOTHESIS_PROFILE=deep python -m pytest tests/fuzz tests/priors/test_fuzz_ssgl.py
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
COMMON = {"deadline": None, "suppress_health_check": SLOW, "database": None}

settings.register_profile("suite", derandomize=True, max_examples=40, **COMMON)
settings.register_profile("deep", derandomize=False, max_examples=3000, print_blob=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def fewer_examples(part: int) -> settings:
    """Return settings with a part of the examples, for tests that are slow on each."""
    return settings(max_examples=max(settings.default.max_examples // part, 5))


NOT_NUMBERS = (
    *(None, "", "0.1", "fast", b"1", [], [0.1], (), (1.0, 2.0), {}, {"a": 1}, {1}, 1j),
    *(object(), int, lambda: 1.0, torch.nn.Identity),
    *(torch.tensor([0.1, 0.2]), torch.zeros(0), np.array([1.0, 2.0]), np.array("a")),
)

not_numbers = st.sampled_from(NOT_NUMBERS)
numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([0, 1, -1, 10**400, -(10**400), 2**63, math.pi, True, False]),
    st.sampled_from([np.float32(0.1), np.float64(0.1), np.int64(3), np.float16(2.0), np.nan]),
)
junk = st.one_of(not_numbers, numbers)
