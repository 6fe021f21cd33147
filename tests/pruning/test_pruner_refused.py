# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Errors of a pruner, when it is built and at a step."""

from __future__ import annotations

import math

import pytest
import torch
from pruning_structures import ODD, ODD_DENSE, make_structure, prune_once

from pyro_aeb.errors import ModelError
from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, Pruner, UnitPruning
from pyro_aeb.schedules import Piecewise, PruningSchedule

ODD_LAYOUT = make_structure(ODD, ODD_DENSE)  # 614 sparse weights of 634


@pytest.mark.parametrize(
    ("sparsity", "k", "when"),
    [
        (0.99, None, ""),
        (PruningSchedule(0.99), None, ""),
        (Piecewise(0.9, {3: 1.1}), 3, "at step 3 "),
    ],
)
def test_more_than_can_be_pruned(sparsity, k, when):
    with pytest.raises(ModelError) as error:
        pruner = Pruner(MagnitudePruning(sparsity), ODD_LAYOUT)
        assert k is not None, "should have been refused when built"
        prune_once(pruner, torch.randn(634), 2)
        prune_once(pruner, torch.randn(634), k)
    assert str(error.value).startswith(
        f"MagnitudePruning(sparsity={MagnitudePruning(sparsity).sparsity!r}"
    )
    assert str(error.value).endswith(
        f"{when}asks for 0.99 of the model's 634 weights to be zero, 628 weights, but its 4 "
        "prunable sites have only 614, 0.9684 of all. Make more layers sparse (an SSGL prior, or "
        "`sites`), or lower the sparsity to at most 0.9684"
    )


def test_all_that_can_be_pruned():
    after = prune_once(Pruner(MagnitudePruning(0.9684), ODD_LAYOUT), torch.randn(634))
    assert int((after == 0).sum()) == 614


def test_nothing_to_prune():
    layout = make_structure({}, {"w": (3,), "b": (1,)})
    with pytest.raises(ModelError) as error:
        Pruner(MagnitudePruning(0.5), layout)
    assert str(error.value) == (
        "MagnitudePruning has nothing to prune: the model has no SSGL site whose latents are "
        "learned. Give weights an SSGL prior and the kernel an adaptation, or name the sites to "
        "prune in `sites`, such as ['w', 'b']"
    )
    with pytest.raises(ModelError, match="`sites` is empty; name some of \\['w', 'b'\\]"):
        Pruner(MagnitudePruning(0.5, sites=()), layout)


def test_a_pattern_that_matches_nothing():
    layout = make_structure({"w": (3,)}, {"b": (1,)}, positive=["scale"])
    with pytest.raises(ModelError) as error:
        Pruner(UnitPruning(0.5, sites=["w", "sc*"]), layout)
    assert str(error.value) == (
        "UnitPruning: 'sc*' in `sites` matches no site that can be pruned; the model's "
        "unconstrained sites are ['w', 'b']"
    )
    with pytest.raises(ModelError, match="'b' in `sites` .* the model's SSGL sites are \\['w'\\]"):
        Pruner(ProbabilityPruning(0.5, sites=["b"]), layout)


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_a_schedule_that_is_no_share(share):
    pruner = Pruner(MagnitudePruning(lambda k: share), ODD_LAYOUT)
    with pytest.raises(ValueError, match=f"sparsity is {share} at step 7, expected a share in"):
        prune_once(pruner, torch.randn(634), 7)
