# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Intervals given in, by hand."""

import numpy as np
from refusals import raises_with
from traces import make_trace

import pyro_aeb as aeb

RNG = np.random.default_rng(0)
SHARES = [1.0, 0.5, 0.5, 0.02, 0.1]
GAMMA = RNG.random((2, 200, 5)) < SHARES
SLAB = RNG.normal([3.0, 2.0, 0.0, 2.0, -2.0], 0.3, size=(2, 200, 5))
WEIGHTS = np.where(GAMMA, SLAB, RNG.laplace(0.0, 0.01, size=(2, 200, 5)))


def test_the_interval_is_that_of_draws_that_are_in():
    found = aeb.intervals(make_trace(GAMMA, weights=WEIGHTS), level=0.8)
    own = found["beta"]
    for j in (0, 1, 2, 4):
        values = WEIGHTS[..., j][GAMMA[..., j]]
        np.testing.assert_allclose(own.mean[j], values.mean())
        np.testing.assert_allclose([own.lower[j], own.upper[j]], np.quantile(values, [0.1, 0.9]))
    np.testing.assert_array_equal(own.draws_in, GAMMA.sum((0, 1)))
    np.testing.assert_allclose(own.probability, GAMMA.mean((0, 1)))
    assert own.draws_in[3] < 20 and np.isnan([own.mean[3], own.lower[3], own.upper[3]]).all()


def test_two_modes_are_marked():
    """Not of a weight that is decided, nor of a slab that has its spike inside."""
    found = aeb.intervals(make_trace(GAMMA, weights=WEIGHTS, coords=list("abcde")))
    assert found["beta"].two_modes.tolist() == [False, True, False, False, True]
    lines = repr(found).splitlines()
    assert lines[0] == "weights, given that they are in" and "90 % from" in lines[1]
    assert [line.split()[0] for line in lines if "two modes" in line] == ["beta[b]", "beta[e]"]
    assert lines[-1].split()[2:] == ["-", "-", "-"]  # beta[d], hardly ever in


def test_a_group_has_an_interval_for_each_weight():
    gamma = GAMMA[..., :2].repeat(2, -1).reshape(2, 200, 2, 2)
    weights = np.stack([WEIGHTS[..., :2], 2.0 * WEIGHTS[..., :2]], -1)
    found = aeb.intervals(make_trace(gamma, weights=weights, group=2))["beta"]
    np.testing.assert_allclose(found.mean[:, 1], 2.0 * found.mean[:, 0])
    assert found.two_modes.tolist() == [[False, False], [True, True]]


def test_what_is_refused():
    apart = {"adaptation": "Gibbs(every=10, flips=False)", "steps": 7}
    trace = make_trace(GAMMA, weights=WEIGHTS, **apart)
    with raises_with("belong together", "steps_per_draw=every", error=ValueError):
        aeb.intervals(trace)
    aeb.intervals(make_trace(GAMMA, weights=WEIGHTS, **{**apart, "steps": 20}))
    with raises_with("kept none of beta", "save=", error=ValueError):
        aeb.intervals(make_trace(GAMMA))
    with raises_with("level is 0.0, expected a number in (0, 1)", error=ValueError):
        aeb.intervals(trace, level=0.0)
