# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 6. The ranks of true weights among the kernel's draws are uniform: a small simulation-based
calibration as in ``tutorials/reproduce/sbc.py``, by a test that fails by chance once in a million.
It detects two wrong samplers.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
from tutorial_runs import require_packages

from pyro_aeb.testing import sequential_test

require_packages("pandas", "scipy", "tqdm")
ranks = importlib.import_module("calibration.ranks")

PROTOCOL = ranks.Protocol(sets=500)


def p_value(name, sets, rng):
    protocol = replace(PROTOCOL, sets=sets)
    return ranks.calibrate(ranks.SETTINGS[name], int(rng.integers(2**31)), protocol).p_value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sghmc", "sghmc frozen"])
def test_ranks_are_uniform(name):
    found = sequential_test(lambda sets, rng: p_value(name, sets, rng), PROTOCOL.sets)
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shorten"), [("large step", 10), ("cold", 1)])
def test_ranks_of_a_wrong_sampler_are_not(name, shorten):
    # Four times the data sets, so that the test rejects far beyond its level of one in a million.
    # With large steps the autocorrelation time is below 10.
    protocol = replace(PROTOCOL, sets=4 * PROTOCOL.sets, shorten=shorten)
    found = ranks.calibrate(ranks.SETTINGS[name], 0, protocol)
    assert found.p_value < 1e-6, found


@pytest.mark.parametrize("name", [n for n, s in ranks.SETTINGS.items() if s.sound])
def test_the_steps_own_bias_is_too_small_to_be_found(name):
    setting, curvature = ranks.SETTINGS[name], ranks.design(np.random.default_rng(0))[1]
    worst = max(ranks.variance_ratio(setting, h, curvature[-1]) for h in curvature)
    level = ranks.LEVEL / ranks.P
    assert ranks.power(1.0, ranks.Protocol()) == pytest.approx(level)
    assert ranks.power(worst, ranks.Protocol()) < 1.5 * level
    assert ranks.power(1.4, ranks.Protocol()) > 0.99  # a relevant error is detected
