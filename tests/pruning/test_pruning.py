# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The options of pruning: dataclasses that print, compare and pickle, and their errors."""

from __future__ import annotations

import pickle
import re

import pytest
import torch

from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, Pruning, UnitPruning
from pyro_aeb.schedules import Constant, PruningSchedule

KINDS = [MagnitudePruning, ProbabilityPruning, UnitPruning]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryPruning:
    def test_prints_as_a_call_that_makes_it(self, kind):
        pruning = kind(PruningSchedule(0.9), "global", freeze=True, every=5, sites=["a", "b.*"])
        assert isinstance(pruning, Pruning)
        assert eval(repr(pruning)) == pruning
        assert repr(kind(0.5)) == (
            f"{kind.__name__}(sparsity=Constant(value=0.5), scope='layer', freeze=False, every=1, "
            "sites=None)"
        )

    def test_pickles_and_hashes(self, kind):
        pruning = kind(PruningSchedule(0.9), sites=["a"])
        copy = pickle.loads(pickle.dumps(pruning))
        assert copy == pruning and hash(copy) == hash(pruning) and type(copy) is kind

    def test_is_frozen(self, kind):
        with pytest.raises(AttributeError):
            kind(0.5).every = 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sparsity": 90}, "sparsity is 90, expected a number in [0, 1]; 90 % is 0.9"),
            ({"sparsity": -0.1}, "sparsity is -0.1, expected a number in [0, 1]"),
            ({"sparsity": float("nan")}, "sparsity is nan, expected a number in [0, 1]"),
            ({"scope": "network"}, "scope is 'network', expected 'layer' or 'global'"),
            ({"every": 0}, "every is 0, expected an integer of at least 1, the steps"),
            ({"every": 2.5}, "every is 2.5, expected an integer of at least 1, the steps"),
        ],
    )
    def test_impossible_options_are_refused(self, kind, options, message):
        with pytest.raises(ValueError, match=re.escape(f"{kind.__name__}: {message}")):
            kind(**{"sparsity": 0.5, **options})

    def test_a_sparsity_that_is_neither_number_nor_schedule(self, kind):
        with pytest.raises(TypeError, match="sparsity is '0.9', expected a number or a schedule"):
            kind("0.9")


def test_a_number_is_a_constant_and_a_name_a_tuple_of_one():
    assert MagnitudePruning(0.5).sparsity == Constant(0.5)
    assert MagnitudePruning(0.5, sites="fc*").sites == ("fc*",)


def test_kinds_differ():
    assert MagnitudePruning(0.5) != UnitPruning(0.5)


def test_scores_by_hand():
    weights = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert torch.equal(MagnitudePruning(0.5).keys(weights, None)[0], weights.abs())
    # The root mean squares of (3, -4) and (0, 0).
    (unit,) = UnitPruning(0.5).keys(weights, None)
    assert unit.tolist() == pytest.approx([(25 / 2) ** 0.5, 0.0])
    probability = torch.tensor([[0.25, 0.5], [0.75, 1.0]])
    first, second = ProbabilityPruning(0.5).keys(weights, probability)
    assert first.tolist() == [[0.25, 0.5], [0.0, 0.0]] and torch.equal(second, weights.abs())
