# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Models and their sizes, counted by hand."""

import numpy as np
import pytest
from refusals import raises_with
from traces import make_trace

import pyro_aeb as aeb

CHAIN = [[1, 0, 0]] * 10 + [[1, 1, 0]] * 6 + [[0, 0, 0]] * 4
OTHER = [[1, 0, 0]] * 12 + [[1, 1, 0]] * 8
GAMMA = np.array([CHAIN, OTHER], bool)


def test_models_by_their_share():
    found = aeb.models(make_trace(GAMMA, coords=["a", "b", "c"]))
    assert [model.members for model in found.models] == [("beta[a]",), ("beta[a]", "beta[b]"), ()]
    assert [model.probability for model in found.models] == [22 / 40, 14 / 40, 4 / 40]
    assert [model.chains for model in found.models] == [2, 2, 1]
    assert found.models[1].gamma["beta"].tolist() == [True, True, False]
    assert found.visited == 3
    np.testing.assert_allclose(found.sizes, [0.1, 0.55, 0.35])
    assert found.mean_size == pytest.approx(1.25)
    share = (GAMMA == [True, False, False]).all(-1).reshape(2, 10, 2).mean(-1)
    within = share.var(1, ddof=1).mean() / 10
    between = share.mean(1).var(ddof=1)
    assert found.models[0].error == pytest.approx(np.sqrt(max(within, between) / 2))
    text = repr(found)
    assert "3 models visited, 2 chains of 20 draws" in text and "none in" in text
    assert "these have 1.000 of the draws" in text
    assert "P by size: 0: 0.100, 1: 0.550, 2: 0.350" in text


def test_no_more_than_asked_for():
    found = aeb.models(make_trace(GAMMA), most=1)
    assert len(found.models) == 1 and found.visited == 3
    assert "these have 0.550 of the draws" in repr(found)
    with raises_with("most is 0, expected an integer of at least 1", error=ValueError):
        aeb.models(make_trace(GAMMA), most=0)


def test_a_group_counts_once():
    found = aeb.models(make_trace(GAMMA.repeat(2, -1).reshape(2, 20, 3, 2), group=2))
    assert found.models[1].members == ("beta[0]", "beta[1]")
    assert found.models[1].gamma["beta"].tolist() == [[True, True], [True, True], [False, False]]
    assert found.mean_size == pytest.approx(1.25)


def test_many_weights_of_a_model_are_counted_not_named():
    assert "beta[7], and 2 more" in repr(aeb.models(make_trace(np.ones((1, 20, 10), bool))))
