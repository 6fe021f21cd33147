# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The random numbers of a step: their law, and which stream they come from."""

from __future__ import annotations

import math
import multiprocessing

import pytest
import torch
from bad_runs import says

from pyro_aeb.noise import LARGE, Noise, check_kind, three_point_table

KINDS = ("normal", "three-point")
SIZES = (1, 13, 1000, LARGE - 1, LARGE, LARGE + 3)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(noise: Noise, steps: int = 2) -> torch.Tensor:
    """The numbers of some steps; copies, as the buffer is used again."""
    return torch.stack([noise.draw().clone() for _ in range(steps)])


# -- the law


def test_the_table_has_the_moments_of_a_normal_number():
    table = three_point_table()
    assert len(table) == 256
    for power, moment in enumerate([1.0, 0.0, 1.0, 0.0, 3.0, 0.0]):
        mean = math.fsum(value**power for value in table) / 256
        assert mean == pytest.approx(moment, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_numbers_have_mean_0_and_variance_1_at_every_place(kind, dtype):
    """Of n numbers of kurtosis 3 mean and mean square have errors sqrt(1/n) and sqrt(2/n)."""
    steps = 4000
    numbers = drawn(Noise(kind, torch.empty(100, dtype=dtype), [generator(1)]), steps).double()
    for values, n in ((numbers.flatten(), numbers.numel()), (numbers, steps)):
        assert (values.mean(0).abs() < 5.0 * math.sqrt(1.0 / n)).all()
        assert ((values.square().mean(0) - 1.0).abs() < 5.0 * math.sqrt(2.0 / n)).all()
    # Neighbours in a step, and the same place in two steps: products have variance 1.
    for pairs in (numbers[:, 1:] * numbers[:, :-1], numbers[1:] * numbers[:-1]):
        assert pairs.mean().abs() < 5.0 * math.sqrt(1.0 / pairs.numel())


def test_every_value_of_the_table_is_drawn_as_often_as_it_is_there():
    numbers = Noise("three-point", torch.empty(10**6), [generator(2)]).draw()
    found, counts = numbers.unique(return_counts=True)
    expected, times = torch.tensor(three_point_table()).unique(return_counts=True)
    assert torch.equal(found, expected)
    p = times / 256
    error = (p * (1.0 - p) * numbers.numel()).sqrt()
    assert ((counts - p * numbers.numel()).abs() < 5.0 * error).all()


# -- the streams


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_seed_gives_the_same_numbers_again_and_every_step_others(kind, size):
    like = torch.empty(size)
    first, second, other = (drawn(Noise(kind, like, [generator(s)]), 100) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:50], first[50:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [13, LARGE])
def test_without_a_generator_torchs_own_serves(kind, size):
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(drawn(Noise(kind, torch.empty(2, size), [None, None])))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][:, 0], found[0][:, 1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_chains_together_have_the_numbers_of_each_alone(kind, size, threads):
    torch.set_num_threads(threads)
    seeds = (7, 8, 9)
    together = drawn(Noise(kind, torch.empty(3, size), [generator(s) for s in seeds]))
    for chain, seed in enumerate(seeds):
        alone = drawn(Noise(kind, torch.empty(size), [generator(seed)]))
        assert torch.equal(together[:, chain], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(LARGE + 5,), (2, LARGE), (4, LARGE // 2)])
def test_the_number_of_threads_changes_no_number(kind, shape):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        chains = shape[0] if len(shape) > 1 else 1
        found.append(drawn(Noise(kind, torch.empty(shape), [generator(i) for i in range(chains)])))
    assert torch.equal(*found)


def test_halves_and_chains_share_no_numbers():
    """In double precision equal numbers of two streams are next to impossible."""
    like = torch.empty(2, LARGE, dtype=torch.float64)
    numbers = drawn(Noise("normal", like, [generator(0), generator(1)]))
    assert numbers.unique().numel() == numbers.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [13, LARGE])
def test_it_goes_on_from_a_saved_state(kind, size):
    own = generator(10)
    noise = Noise(kind, torch.empty(size), [own])
    drawn(noise, 3)
    states = own.get_state(), noise.state()
    expected = drawn(noise, 3)
    other = generator(11)
    again = Noise(kind, torch.empty(size), [other])
    drawn(again, 1)
    other.set_state(states[0])
    again.load(states[1])
    assert torch.equal(drawn(again, 3), expected)


def _draw(noise: Noise, results) -> None:
    # Copies by NumPy: torch's own threads, too, are not in a fork.
    results.put([noise.draw().numpy().copy() for _ in range(3)])


def test_a_forked_process_draws_the_same_though_it_has_no_thread_of_its_parents():
    torch.set_num_threads(2)
    noise, same = (Noise("normal", torch.empty(LARGE), [generator(12)]) for _ in range(2))
    assert torch.equal(drawn(noise), drawn(same))  # both threads have run
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    child = fork.Process(target=_draw, args=(noise, results), daemon=True)
    child.start()
    found = results.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    for numbers in found:
        assert torch.equal(torch.from_numpy(numbers), same.draw())


def test_another_kind_is_told_of():
    for kind in ("gaussian", None, "Normal"):
        with says(f"noise is {kind!r}", "'normal'", "'three-point'", error=ValueError):
            check_kind(kind)
    for kind in KINDS:
        check_kind(kind)
