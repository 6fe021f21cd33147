# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A pruner is saved, and another resumes its state, bit for bit."""

from __future__ import annotations

import io
import re

import pytest
import torch
from pruning_structures import ODD, ODD_DENSE, CoarseWalk, make_structure, prune_once

from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, Pruner, UnitPruning
from pyro_aeb.schedules import Piecewise, PruningSchedule

STEPS = 12
LAYOUT = make_structure(ODD, ODD_DENSE)
# Up, and down again, where a mask alone knows what it holds.
SCHEDULES = [PruningSchedule(0.7, damping=0.5, period=5), Piecewise(0.6, {8: 1 / 2})]


def save_and_load(pruner: Pruner) -> dict:
    """The state after a file that may hold nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(pruner.state(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [MagnitudePruning, ProbabilityPruning, UnitPruning])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("chains", [(), (2,)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_new_pruner_resumes_the_state_of_another(kind, scope, freeze, chains, schedule):
    pruning = kind(schedule, scope, freeze, every=2)
    walk, whole = CoarseWalk(LAYOUT, STEPS, chains), Pruner(pruning, LAYOUT)
    expected = walk.advance(whole, walk.start(), range(1, STEPS + 1))
    for stop in (0, 1, 2, 7, 9):  # before the first pruning, at one, between two, past the fall
        first, second = Pruner(pruning, LAYOUT), Pruner(pruning, LAYOUT)
        state = walk.advance(first, walk.start(), range(1, stop + 1))
        second.load(save_and_load(first))
        state = walk.advance(second, state, range(stop + 1, STEPS + 1))
        assert torch.equal(state.position, expected.position)
        assert torch.equal(state.momentum, expected.momentum)
        assert torch.equal(second.zeros(), whole.zeros())
        assert (second.mask is None) == (not freeze)
        if freeze:
            assert torch.equal(second.mask, whole.mask)


def test_the_counts_of_the_sites_are_restored():
    # Three zeros of layers of 3, 3, 1, 1 and 1 are placed 1, 1, 1, 0, 0. Four would be 2, 2, 0, 0,
    # 0, which with that mask makes five.
    layout = make_structure({f"w{i}": (n,) for i, n in enumerate([3, 3, 1, 1, 1])})
    pruning = MagnitudePruning(Piecewise(3 / 9, {2: 4 / 3}), freeze=True)
    first, second = Pruner(pruning, layout), Pruner(pruning, layout)
    position = prune_once(first, torch.arange(1.0, 10.0), 1)
    second.load(save_and_load(first))
    assert int((prune_once(second, position, 2) == 0).sum()) == 4


def test_a_saved_state_is_a_copy():
    pruning = MagnitudePruning(SCHEDULES[0], freeze=True)
    walk, pruner, copy = CoarseWalk(LAYOUT, STEPS), Pruner(pruning, LAYOUT), Pruner(pruning, LAYOUT)
    state = walk.advance(pruner, walk.start(), range(1, 6))
    snapshot = pruner.state()
    before = snapshot["keep"].clone()
    copy.load(snapshot)
    assert torch.equal(copy.mask, pruner.mask)
    for one in (pruner, copy):
        walk.advance(one, state, range(6, STEPS + 1))
        assert torch.equal(snapshot["keep"], before)
        assert not torch.equal(one.state()["keep"], before)


def test_zeros_are_nan_before_the_next_step():
    pruner = Pruner(MagnitudePruning(0.5), LAYOUT)
    prune_once(pruner, torch.randn(LAYOUT.size))
    pruner.load(pruner.state())
    assert pruner.zeros().isnan()


def test_the_state_of_another_model_is_refused():
    pruning, other = MagnitudePruning(0.5, freeze=True), make_structure({"w": (3,), "v": (2,)})
    pruner = Pruner(pruning, LAYOUT)
    with pytest.raises(ValueError, match=re.escape("2 prunable sites with no mask, expected 4")):
        pruner.load(Pruner(pruning, other).state())
    wide = make_structure({name: (9, *shape) for name, shape in ODD.items()})
    larger = Pruner(pruning, wide)
    prune_once(larger, torch.randn(wide.size))
    message = "4 prunable sites with a mask of 5526 weights, expected 4 sites and 614 weights"
    with pytest.raises(ValueError, match=re.escape(message)):
        pruner.load(larger.state())
