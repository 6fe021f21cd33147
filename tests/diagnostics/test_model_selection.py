# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Selections by hand, and credible sets under an enumerated posterior."""

import numpy as np
import pytest
from enumeration import enumerate_models
from refusals import raises_with
from traces import make_trace

import pyro_aeb as aeb
from pyro_aeb.diagnostics.model_selection import find_credible_sets, largest_set


@pytest.mark.parametrize(
    ("fdr", "expected"),
    [
        (0.005, []),
        (0.011, [0]),  # rates of the sets of 1, 2, 4, 5 weights: .01, .03, .115, .192
        (0.029, [0]),
        (0.031, [0, 2]),
        (0.1, [0, 2]),  # one of two equal ones would do, at .09
        (0.12, [0, 1, 2, 4]),
        (0.2, [0, 1, 2, 3, 4]),
    ],
)
def test_the_false_discovery_rate_by_hand(fdr, expected):
    probability = np.array([0.99, 0.8, 0.95, 0.5, 0.8])
    assert np.flatnonzero(largest_set(probability, fdr)).tolist() == expected


def test_the_selections_of_a_trace():
    probability = np.array([0.99, 0.8, 0.95, 0.5, 0.2]) + np.zeros((2, 40, 5))
    gamma = np.zeros((2, 40, 5), bool)
    gamma[..., 0] = True
    trace = make_trace(gamma, probability, coords=list("abcde"))
    found = aeb.select(trace)
    assert found.median["beta"].tolist() == [True, True, True, True, False]
    assert found.discoveries["beta"].tolist() == [True, False, True, False, False]
    assert found.expected_fdr == pytest.approx(0.03)
    assert found.names == (("beta[a]", "beta[b]", "beta[c]", "beta[d]"), ("beta[a]", "beta[c]"))
    assert [each.members for each in found.credible_sets] == [("beta[a]",)]
    text = repr(found)
    assert "1/2: 4, beta[a], beta[b], beta[c], beta[d]" in text
    assert "<= 0.05: 2, beta[a], beta[c]; that share is 0.030" in text
    assert "credible sets of level 0.95: 1\n  beta[a]: P(one or more in) 1.000" in text
    nothing = aeb.select(make_trace(~gamma & False, probability * 0.1))
    assert nothing.expected_fdr == 0.0 and repr(nothing).count("none") == 3
    for name in ("fdr", "level"):
        with raises_with(f"{name} is 1.0, expected a number in (0, 1)", error=ValueError):
            aeb.select(trace, **{name: 1.0})


def draw_models(models, weights, draws=1000):
    """Independent draws of models in two chains, from their probabilities."""
    rng = np.random.default_rng(1)
    return models[rng.choice(len(models), p=weights, size=(2, draws))]


def test_two_equal_columns_make_one_set():
    models, weights = enumerate_models()
    gamma = draw_models(models, weights)
    inclusion = weights @ models
    assert inclusion[1] == pytest.approx(inclusion[2]) and 0.4 < inclusion[1] < 0.5
    assert find_credible_sets(gamma, 0.9, list("abcd")) == []
    (found,) = find_credible_sets(gamma, 0.8, list("abcd"))
    assert set(found.members) == {"b", "c"} and set(found.units) == {1, 2}
    either, both = weights @ (models[:, 1] | models[:, 2]), weights @ (models[:, 1] & models[:, 2])
    assert abs(found.probability - either) < 5.0 * found.error
    assert found.one == pytest.approx(either - both, abs=0.05)
    assert "P(exactly one)" in str(found)


def test_exactly_one_of_several():
    """Of three equal ones each with 1/3, and of two with 1/2, with an independent one of 1/2."""
    rng = np.random.default_rng(2)
    three, two = rng.integers(3, size=(2, 1000)), rng.integers(2, size=(2, 1000))
    parts = [three[..., None] == np.arange(3), two[..., None] == np.arange(2)]
    gamma = np.concatenate([*parts, rng.random((2, 1000, 2)) < 0.5], -1)
    found = find_credible_sets(gamma, 0.95, list("abcdefg"))
    assert sorted(sorted(each.members) for each in found) == [["a", "b", "c"], ["d", "e"]]
    assert all(each.probability == each.one == 1.0 and each.error == 0.0 for each in found)


def test_what_is_independent_makes_no_set():
    gamma = np.random.default_rng(3).random((4, 500, 8)) < 0.5
    assert find_credible_sets(gamma, 0.95, list("abcdefgh")) == []


def test_chains_that_keep_to_one_of_two_show_the_other():
    gamma = np.zeros((2, 100, 2), bool)
    gamma[0, :, 0] = gamma[1, :, 1] = True
    (found,) = find_credible_sets(gamma, 0.95, ["a", "b"])
    assert found.members == ("a", "b") and found.probability == found.one == 1.0
