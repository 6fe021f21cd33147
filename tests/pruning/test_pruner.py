# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A pruner on a position: exact counts, regrowth, masks, units, probabilities."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from pruning_structures import (
    ODD,
    ODD_DENSE,
    RESNET20,
    RESNET20_DENSE,
    count_zeros,
    make_structure,
    prune_once,
    pruned_walk,
    refuse_probabilities,
)

from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, Pruner, UnitPruning
from pyro_aeb.schedules import Piecewise, PruningSchedule
from pyro_aeb.transitions import SGHMCState, SGLDState

RISING = PruningSchedule(target=0.7, damping=0.5, period=5)
ODD_LAYOUT = make_structure(ODD, ODD_DENSE)  # 614 sparse weights of 634


def small_structure(*sizes: int, dense: int = 0):
    return make_structure(
        {f"w{i}": (n,) for i, n in enumerate(sizes)}, {"bias": (dense,)} if dense else {}
    )


# Exactness


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_has_exactly_its_share_of_zeros(scope, freeze, dtype):
    layout = make_structure(ODD, ODD_DENSE, dtype=dtype)
    pruner = Pruner(MagnitudePruning(RISING, scope, freeze), layout)
    for k, state in pruned_walk(pruner, layout, 60):
        wanted = round(RISING(k) * layout.size)
        found = count_zeros(state.position, layout)
        assert sum(found.values()) == wanted
        assert state.position.dtype == dtype
        assert int((state.position == 0).sum()) == wanted  # none outside the SSGL sites
        assert float(pruner.zeros()) == pytest.approx(wanted / layout.size, rel=1e-6)
        if scope == "layer":
            for block in layout.sparse:
                share = wanted * block.size / layout.sparse_size
                assert abs(found[block.name] - share) < 1


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruned_weights_are_nowhere_larger_than_kept_ones(scope):
    pruner = Pruner(MagnitudePruning(0.6, scope), ODD_LAYOUT)
    for seed in range(5):
        before = torch.randn(ODD_LAYOUT.size, generator=torch.Generator().manual_seed(seed))
        after = prune_once(pruner, before)
        gone = after == 0
        assert torch.equal(after[~gone], before[~gone])
        layers = ODD_LAYOUT.unflatten(torch.arange(ODD_LAYOUT.size))
        own = [layers[name].flatten() for name in ODD]
        for index in own if scope == "layer" else [torch.cat(own)]:
            magnitude, out = before[index].abs(), gone[index]
            assert magnitude[out].max() <= magnitude[~out].min()


def test_equal_magnitudes_are_pruned_by_number_not_by_threshold():
    # A threshold at the third smallest magnitude, and all up to it, would take all ten.
    layout = small_structure(10)
    position = torch.tensor([0.5, -0.5] * 5)
    after = prune_once(Pruner(MagnitudePruning(0.3), layout), position)
    assert int((after == 0).sum()) == 3
    assert int((after.abs() == 0.5).sum()) == 7


def test_weights_that_are_zero_count():
    layout = small_structure(10)
    position = torch.arange(10.0) * torch.tensor([1, 0] * 5)  # zero: 0, 1, 3, 5, 7, 9
    pruner = Pruner(MagnitudePruning(0.8), layout)
    assert prune_once(pruner, position).nonzero().flatten().tolist() == [6, 8]
    # More zeros than asked for stay as they are.
    assert torch.equal(prune_once(Pruner(MagnitudePruning(0.2), layout), position), position)
    assert torch.equal(prune_once(pruner, torch.zeros(10)), torch.zeros(10))


def test_zero_and_all():
    layout, position = small_structure(4, 3), torch.arange(1.0, 8.0)
    assert torch.equal(prune_once(Pruner(MagnitudePruning(0.0), layout), position), position)
    assert torch.equal(prune_once(Pruner(MagnitudePruning(1.0), layout), position), torch.zeros(7))


def test_a_pruned_weight_is_a_plain_zero_and_an_infinite_one_is_not_hidden():
    position = torch.tensor([-1.0, -2.0, -3.0, math.nan])
    after = prune_once(Pruner(MagnitudePruning(0.5), small_structure(4)), position)
    assert after[:3].tolist() == [0.0, 0.0, -3.0] and after[3].isnan()
    assert not torch.signbit(after[:2]).any()


def test_the_whole_of_resnet20_reaches_its_target():
    layout = make_structure(RESNET20, RESNET20_DENSE)
    assert (layout.sparse_size, layout.size) == (267_264, 269_722)
    pruner = Pruner(MagnitudePruning(PruningSchedule(0.9, damping=0.0)), layout)
    position = torch.randn(layout.size)
    found = count_zeros(prune_once(pruner, position), layout)
    # 90 % of all, so S D / p = 0.908277 of every sparse layer: of 2304 weights 2092.67.
    assert sum(found.values()) == 242_750 == round(0.9 * 269_722)
    assert {found[f"layer1.{i}.weight"] for i in range(6)} <= {2092, 2093}
    assert float(pruner.zeros()) == pytest.approx(242_750 / 269_722, rel=1e-6)


# Steps


def test_weights_grow_back_without_a_mask():
    pruner = Pruner(MagnitudePruning(0.5), small_structure(4))
    state = pruner.prune(SGLDState(torch.tensor([1.0, 2.0, 3.0, 4.0])), 1, refuse_probabilities)
    assert state.position.tolist() == [0.0, 0.0, 3.0, 4.0]
    state = SGLDState(state.position + torch.tensor([9.0, 0.0, 0.0, 0.0]))
    state = pruner.prune(state, 2, refuse_probabilities)
    assert state.position.tolist() == [9.0, 0.0, 0.0, 4.0]
    assert pruner.mask is None


def test_momentum_is_left_alone_without_a_mask():
    pruner = Pruner(MagnitudePruning(0.5), small_structure(4))
    state = SGHMCState(torch.arange(1.0, 5.0), torch.ones(4))
    assert pruner.prune(state, 1, refuse_probabilities).momentum.tolist() == [1.0] * 4


@pytest.mark.parametrize("kind", [MagnitudePruning, UnitPruning])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_mask_only_grows_and_holds_position_and_momentum(kind, scope):
    pruner = Pruner(kind(RISING, scope, freeze=True, every=3), ODD_LAYOUT)
    gone = torch.zeros(ODD_LAYOUT.size, dtype=torch.bool)
    for k, (position, momentum) in pruned_walk(pruner, ODD_LAYOUT, 40):
        if k < 3:
            assert pruner.mask is None and position.all()
            continue
        assert pruner.mask is not None and pruner.mask.shape == (ODD_LAYOUT.size,)
        assert torch.equal(~pruner.mask, position == 0)
        assert not momentum[~pruner.mask].any() and momentum[pruner.mask].all()
        assert (position[gone] == 0).all()
        assert k % 3 == 0 or torch.equal(gone, ~pruner.mask)
        gone = ~pruner.mask
    assert gone.any()


def test_a_mask_stays_exact_if_the_best_shares_of_a_larger_total_shrink_a_layer():
    # Of layers of 3, 3, 1, 1 and 1, three zeros are best placed 1, 1, 1, 0, 0 and four 2, 2, 0, 0,
    # 0; with the mask of the first step that would make five.
    layout = small_structure(3, 3, 1, 1, 1)
    pruner = Pruner(MagnitudePruning(Piecewise(3 / 9, {2: 4 / 3}), freeze=True), layout)
    found = [int((state.position == 0).sum()) for _, state in pruned_walk(pruner, layout, 2)]
    assert found == [3, 4]


@pytest.mark.parametrize("freeze", [False, True])
def test_a_falling_schedule_frees_weights_but_not_with_a_mask(freeze):
    schedule = Piecewise(0.75, {2: 1 / 3})
    pruner = Pruner(MagnitudePruning(schedule, freeze=freeze), small_structure(8))
    found = []
    for _, state in pruned_walk(pruner, small_structure(8), 2):
        found.append(int((state.position == 0).sum()))
    assert found == ([6, 6] if freeze else [6, 2])


def test_between_the_pruning_steps_weights_are_free():
    pruner = Pruner(MagnitudePruning(0.5, every=4), ODD_LAYOUT)
    for k, state in pruned_walk(pruner, ODD_LAYOUT, 12):
        assert int((state.position == 0).sum()) == (317 if k % 4 == 0 else 0)
        assert float(pruner.zeros()) == pytest.approx(0.5 if k % 4 == 0 else 0.0)


def test_a_state_is_changed_in_place():
    position = torch.arange(1.0, 5.0)
    state = SGLDState(position)
    assert (
        Pruner(MagnitudePruning(0.5), small_structure(4)).prune(state, 1, refuse_probabilities)
        is state
    )
    assert position.tolist() == [0.0, 0.0, 3.0, 4.0]


def test_the_target_is_the_schedule():
    pruner = Pruner(MagnitudePruning(RISING), ODD_LAYOUT)
    assert [pruner.target(k) for k in (1, 5)] == [RISING(1), 0.35]
    assert pruner.zeros().isnan()  # no step yet


def test_a_leading_axis_of_chains():
    for kind in (MagnitudePruning, UnitPruning):
        for scope in ("layer", "global"):
            position = torch.randn(3, ODD_LAYOUT.size)
            pruner = Pruner(kind(0.6, scope, freeze=True), ODD_LAYOUT)
            together = prune_once(pruner, position)
            apart = [prune_once(Pruner(kind(0.6, scope), ODD_LAYOUT), own) for own in position]
            assert torch.equal(together, torch.stack(apart))
            assert pruner.zeros().shape == (3,)
            assert torch.equal(pruner.mask, together != 0)


# Sites


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        (None, set(ODD)),
        (["b.weight"], {"b.weight"}),
        ("a.*", {"a.weight", "a.bias"}),
        (("a.weight", "*.bias", "a.*"), {"a.weight", "a.bias", "b.bias"}),
    ],
)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sites_by_name_and_by_pattern(sites, expected, scope):
    pruning = MagnitudePruning(0.05, scope, sites=sites)
    # The other sites' weights are far smaller, and still stay.
    position = torch.full((ODD_LAYOUT.size,), 1e-3)
    for name in expected:
        ODD_LAYOUT.unflatten(position)[name].fill_(1.0)
    after = prune_once(Pruner(pruning, ODD_LAYOUT), position)
    found = {name for name, value in ODD_LAYOUT.unflatten(after).items() if (value == 0).any()}
    assert found <= expected
    assert int((after == 0).sum()) == 32  # 0.05 of 634


def test_constrained_sites_are_never_pruned():
    layout = make_structure({}, {"w": (6,)}, positive=["scale"])
    after = prune_once(Pruner(MagnitudePruning(0.5, sites="*"), layout), torch.full((7,), 0.1))
    assert int((after[:6] == 0).sum()) == 4 and after[6] == 0.1


# Units


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_units_are_pruned_whole_and_their_number_is_right(scope):
    pruner = Pruner(UnitPruning(RISING, scope), ODD_LAYOUT)
    for k, state in pruned_walk(pruner, ODD_LAYOUT, 40):
        wanted, found, largest = round(RISING(k) * ODD_LAYOUT.size), 0, 0
        for block in ODD_LAYOUT.sparse:
            unit = block.size // block.shape[0]
            rows = ODD_LAYOUT.unflatten(state.position)[block.name].reshape(-1, unit)
            gone = (rows == 0).all(dim=1)
            assert torch.equal(gone, (rows == 0).any(dim=1))
            found += int(gone.sum()) * unit
            largest = max(largest, unit)
            if scope == "layer":
                share = wanted * block.size / ODD_LAYOUT.sparse_size
                assert abs(int(gone.sum()) * unit - share) < unit
        if scope == "global":  # reached, and by less than the unit that came last
            assert wanted <= found < wanted + largest


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruned_units_are_nowhere_larger_than_kept_ones(scope):
    layout = make_structure({"w": (40, 6)})
    before = torch.randn(240)
    after = prune_once(Pruner(UnitPruning(0.5, scope), layout), before).reshape(40, 6)
    size, gone = before.reshape(40, 6).square().mean(dim=1), (after == 0).all(dim=1)
    assert int(gone.sum()) == 20
    assert size[gone].max() <= size[~gone].min()


def test_units_by_root_mean_square_not_by_sum():
    # Rows of 4 weights of 0.9 and of 1 weight of 1: the wide row has the larger norm, 1.8.
    layout = make_structure({"wide": (2, 4), "narrow": (2, 1)})
    position = torch.tensor([0.9] * 4 + [5.0] * 4 + [1.0, 5.0])
    after = prune_once(Pruner(UnitPruning(0.1, "global"), layout), position)
    assert after.nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_a_global_share_of_units_takes_the_fewest_that_reach_it():
    layout = make_structure({"wide": (3, 4), "narrow": (4, 2)})  # 20 weights
    # By root mean square: narrow 0, wide 0, narrow 1, wide 1, ...
    rms = {"wide": [2.0, 4.0, 6.0], "narrow": [1.0, 3.0, 5.0, 7.0]}
    position = torch.cat(
        [
            torch.tensor(rms["wide"]).repeat_interleave(4),
            torch.tensor(rms["narrow"]).repeat_interleave(2),
        ]
    )
    for share, gone in [(0.05, 2), (0.1, 2), (0.15, 6), (0.3, 6), (0.35, 8), (0.45, 12)]:
        after = prune_once(Pruner(UnitPruning(share, "global"), layout), position)
        assert int((after == 0).sum()) == gone


def test_a_filter_is_a_slice_of_the_first_axis_and_a_scalar_is_a_unit():
    layout = make_structure({"conv": (4, 3, 2, 2), "gain": ()})
    position = torch.ones(49) * torch.arange(1.0, 50.0)
    conv = layout.unflatten(prune_once(Pruner(UnitPruning(0.5), layout), position))["conv"]
    assert [bool(f.any()) for f in conv] == [False, False, True, True]


# Probabilities


def test_the_least_probable_are_pruned_first_and_magnitude_breaks_ties():
    layout = small_structure(6, dense=2)
    probability = torch.tensor([0.9, 0.1, 0.0, 0.0, 0.0, 1.0])
    position = torch.tensor([0.01, 9.0, 3.0, -1.0, 2.0, 0.02, 0.001, 0.001])
    for share, gone in [(1 / 8, [3]), (2 / 8, [3, 4]), (3 / 8, [2, 3, 4]), (4 / 8, [1, 2, 3, 4])]:
        pruner = Pruner(ProbabilityPruning(share), layout)
        after = prune_once(pruner, position, wide=lambda: probability)
        assert (after == 0).nonzero().flatten().tolist() == gone


def test_a_zero_weight_is_pruned_before_any_improbable_one():
    # Else three would be zero where two are asked for.
    position = torch.tensor([0.0, 1.0, 2.0, 3.0])
    probability = torch.tensor([0.9, 0.1, 0.2, 0.3])
    after = prune_once(
        Pruner(ProbabilityPruning(0.5), small_structure(4)), position, wide=lambda: probability
    )
    assert after.tolist() == [0.0, 0.0, 2.0, 3.0]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("freeze", [False, True])
def test_saturated_probabilities_leave_the_count_exact(scope, freeze):
    generator = torch.Generator().manual_seed(3)
    pruner = Pruner(ProbabilityPruning(RISING, scope, freeze), ODD_LAYOUT)
    for k in range(1, 30):
        position = torch.randn(ODD_LAYOUT.size, generator=generator)
        rho = (20 * torch.randn(ODD_LAYOUT.sparse_size, generator=generator)).clamp(0, 1)
        after = prune_once(pruner, position, k, lambda rho=rho: rho)
        assert int((after == 0).sum()) == round(RISING(k) * ODD_LAYOUT.size)


def test_probabilities_are_those_of_the_named_sites():
    layout = small_structure(3, 3)
    probability = torch.tensor([0.0, 0.0, 0.0, 0.9, 0.1, 0.8])
    pruner = Pruner(ProbabilityPruning(1 / 6, sites="w1"), layout)
    after = prune_once(pruner, torch.ones(6), wide=lambda: probability)
    assert after.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]


def test_pickles_with_its_mask():
    pruner = Pruner(MagnitudePruning(0.5, freeze=True), ODD_LAYOUT)
    prune_once(pruner, torch.randn(634))
    copy = pickle.loads(pickle.dumps(pruner))
    assert torch.equal(copy.mask, pruner.mask)
    position = torch.randn(634)
    assert torch.equal(prune_once(copy, position, 2), prune_once(pruner, position, 2))
