# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Chains that step together are pruned as each would be alone, bit for bit."""

from __future__ import annotations

import pytest
import torch
from pruning_structures import ODD, ODD_DENSE, CoarseWalk, make_structure

from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, Pruner, UnitPruning
from pyro_aeb.pruning.selection import SAMPLED, all_but_enough, all_but_lowest
from pyro_aeb.schedules import PruningSchedule

CHAINS, STEPS = 3, 12
LAYOUT = make_structure(ODD, ODD_DENSE)
RISING = PruningSchedule(target=0.7, damping=0.5, period=5)


@pytest.mark.parametrize("kind", [MagnitudePruning, ProbabilityPruning, UnitPruning])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("every", [1, 5])
def test_chains_together_equal_chains_alone(kind, scope, freeze, every):
    pruning = kind(RISING, scope, freeze, every)
    walk, together = CoarseWalk(LAYOUT, STEPS, (CHAINS,)), Pruner(pruning, LAYOUT)
    state = walk.advance(together, walk.start(), range(1, STEPS + 1))
    assert together.zeros().shape == (CHAINS,)
    for i in range(CHAINS):
        alone, own = Pruner(pruning, LAYOUT), walk.chain(i)
        expected = own.advance(alone, own.start(), range(1, STEPS + 1))
        assert torch.equal(state.position[i], expected.position)
        assert torch.equal(state.momentum[i], expected.momentum)
        assert torch.equal(together.zeros()[i], alone.zeros())
        if freeze:
            assert torch.equal(together.mask[i], alone.mask)
        else:
            assert together.mask is None
    assert not torch.equal(state.position[0] == 0, state.position[1] == 0)


@pytest.mark.parametrize("kind", [MagnitudePruning, ProbabilityPruning, UnitPruning])
def test_every_chain_has_a_mask_of_its_own(kind):
    walk, pruner = CoarseWalk(LAYOUT, STEPS, (CHAINS,)), Pruner(kind(RISING, freeze=True), LAYOUT)
    walk.advance(pruner, walk.start(), range(1, STEPS + 1))
    assert pruner.mask.shape == (CHAINS, LAYOUT.size)
    assert len({tuple(row.tolist()) for row in pruner.mask}) == CHAINS
    if kind is not UnitPruning:  # whose counts are shared too, but whose zeros are by unit
        assert (~pruner.mask).sum(-1).tolist() == [round(RISING(STEPS) * LAYOUT.size)] * CHAINS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 50, SAMPLED + 3])
def test_rows_are_chosen_as_each_would_be_alone(n, dtype):
    first, second = (torch.randn(2, 3, n, dtype=dtype).mul(4).round() for _ in range(2))
    for count in {0, n // 3, n // 2, n}:
        stays = all_but_lowest([first, second], count)
        assert stays.shape == first.shape and stays.dtype == torch.bool
        for i in range(2):
            for j in range(3):
                alone = all_but_lowest([first[i, j], second[i, j]], count)
                assert torch.equal(stays[i, j], alone)


def test_units_of_rows_are_chosen_as_each_would_be_alone():
    scores, sizes = torch.randn(4, 200).mul(2).round(), torch.randint(1, 9, (200,))
    stays = all_but_enough(scores, sizes, 300)
    for row, own in zip(stays, scores, strict=True):
        assert torch.equal(row, all_but_enough(own, sizes, 300))
