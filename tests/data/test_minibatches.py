# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Indices of the plates at every step."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from pyro_aeb.data.minibatches import LONG, ChainMinibatches, Minibatches
from pyro_aeb.storage.checkpoint import from_bytes, to_bytes

CPU = torch.device("cpu")


def make_minibatches(plates, order="permutation", seed=0) -> Minibatches:
    return Minibatches(plates, order, CPU, torch.Generator().manual_seed(seed))


def draw_batches(batches: Minibatches, steps: int, plate: str = "data") -> Tensor:
    """The batches of so many steps, shape (steps, n)."""
    return torch.stack([batches.next()[plate].clone() for _ in range(steps)])


def is_uniform(counts: Tensor, alpha: float = 1e-6) -> bool:
    """Pearson's test that counts come from a uniform distribution."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(statistic) < chi2.isf(alpha, counts.numel() - 1)


@pytest.mark.parametrize("size, n", [(12, 4), (12, 1), (7, 7), (6, 3)])
def test_every_index_occurs_once_an_epoch(size, n):
    batches = make_minibatches({"data": (size, n)})
    for _ in range(5):
        epoch = draw_batches(batches, size // n)
        assert epoch.shape == (size // n, n)
        assert torch.equal(epoch.reshape(-1).sort().values, torch.arange(size))


@pytest.mark.parametrize("order", ["permutation", "replacement"])
@pytest.mark.parametrize("size, n", [(10, 3), (10, 9), (10, 1), (10, 10)])
def test_batches_have_exactly_n_indices_of_the_plate(order, size, n):
    batch = draw_batches(make_minibatches({"data": (size, n)}, order), 50)
    assert batch.shape == (50, n) and batch.dtype == torch.int64
    assert batch.min() >= 0 and batch.max() < size


def test_indices_of_a_permutation_do_not_repeat_within_an_epoch():
    batches = make_minibatches({"data": (10, 3)})
    for _ in range(20):
        epoch = draw_batches(batches, 3)  # 9 of 10; one waits
        assert len(epoch.unique()) == 9


def test_epochs_differ():
    batches = make_minibatches({"data": (100, 50)})
    first, second = draw_batches(batches, 2), draw_batches(batches, 2)
    assert not torch.equal(first, second)


def test_every_index_is_left_over_with_the_same_probability():
    batches = make_minibatches({"data": (5, 2)})
    left_over = torch.zeros(5)
    for _ in range(2000):
        left_over[list(set(range(5)) - set(draw_batches(batches, 2).reshape(-1).tolist()))] += 1
    assert left_over.sum() == 2000
    assert is_uniform(left_over)


def test_every_place_of_a_permutation_is_uniform():
    counts = torch.zeros(4, 4)
    batches = make_minibatches({"data": (4, 2)})
    for _ in range(2000):
        counts[torch.arange(4), draw_batches(batches, 2).reshape(-1)] += 1
    assert all(is_uniform(place) for place in counts)


def test_replacement_repeats_indices_and_is_uniform():
    batch = draw_batches(make_minibatches({"data": (10, 8)}, "replacement"), 1000)
    assert any(len(row.unique()) < 8 for row in batch)
    assert is_uniform(batch.reshape(-1).bincount(minlength=10).float())


@pytest.mark.parametrize("order", ["permutation", "replacement"])
def test_batches_follow_from_the_generator_alone(order):
    plates = {"data": (20, 6)}
    torch.manual_seed(1)
    first = draw_batches(make_minibatches(plates, order, seed=5), 10)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, draw_batches(make_minibatches(plates, order, seed=5), 10))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, draw_batches(make_minibatches(plates, order, seed=6), 10))


@pytest.mark.parametrize("order", ["permutation", "replacement"])
def test_without_a_generator_batches_come_from_torchs_own(order):
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(draw_batches(Minibatches({"data": (20, 6)}, order, CPU), 10))
    assert torch.equal(*runs)


def test_a_whole_plate_is_in_order_and_draws_no_random_number():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    batches = Minibatches({"data": (6, 6)}, "permutation", CPU, generator)
    assert torch.equal(draw_batches(batches, 3), torch.arange(6).expand(3, 6))
    assert torch.equal(generator.get_state(), state)


def test_plates_are_drawn_independently():
    batches = make_minibatches({"a": (6, 3), "b": (6, 3), "whole": (4, 4)})
    together = [{k: v.clone() for k, v in batches.next().items()} for _ in range(400)]
    assert all(step.keys() == {"a", "b", "whole"} for step in together)
    pairs = torch.zeros(6, 6)  # of the first indices
    for step in together:
        pairs[step["a"][0], step["b"][0]] += 1
    assert is_uniform(pairs.reshape(-1))


def test_there_may_be_no_plate():
    assert make_minibatches({}).next() == {}


def test_another_order_is_an_error_that_names_both():
    with pytest.raises(ValueError, match="'shuffle', expected 'permutation' .* 'replacement'"):
        make_minibatches({}, "shuffle")


PLATES = {"long": (LONG + 3, 700), "short": (LONG - 1, 900)}


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_saved_permutations_continue(seed, steps):
    """Also if the state is saved again before the epoch ends."""
    torch.manual_seed(5)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = Minibatches(PLATES, "permutation", CPU, generator)
    for _ in range(steps):
        batches.next()
    source = torch.default_generator if seed is None else generator
    random, saved = source.get_state(), to_bytes(batches.state())
    expected = [{n: x.clone() for n, x in batches.next().items()} for _ in range(8)]
    again = make_minibatches(PLATES)
    again.load(from_bytes(saved, "state"))
    other = Minibatches(PLATES, "permutation", CPU, generator)
    other.load(from_bytes(to_bytes(again.state()), "state"))
    source.set_state(random)
    for step in expected:
        found = other.next()
        assert found.keys() == step.keys()
        assert all(torch.equal(found[name], step[name]) for name in step)


def test_a_permutation_of_an_older_checkpoint_continues():
    batches = make_minibatches(PLATES)
    expected = [{n: x.clone() for n, x in batches.next().items()} for _ in range(2)]
    old = {"epochs": dict(batches._epochs), "starts": {"long": 700, "short": 900}}
    again = make_minibatches(PLATES, seed=1)
    again.load(old)
    found = again.next()
    assert all(torch.equal(found[name], expected[1][name]) for name in PLATES)
    assert again.state()["epochs"].keys() == PLATES.keys()  # whose origins are not known


def test_a_saved_state_does_not_grow_with_the_data():
    chains = [make_minibatches({"data": (10**6, 100)}, seed=i) for i in range(3)]
    together = ChainMinibatches(chains)
    for _ in range(3):
        together.next()
    assert len(to_bytes(together.state())) < 40_000
