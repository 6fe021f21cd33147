# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The random numbers of a step: their law, and which stream they come from."""

from __future__ import annotations

import math
import multiprocessing
import tracemalloc

import numpy as np
import pytest
import torch
from refusals import raises_with
from scipy import stats

from pyro_aeb import SGLD, AEBKernel
from pyro_aeb.errors import ModelError
from pyro_aeb.kernel.noise import LARGE, PIECE, Noise
from pyro_aeb.kernel.random_bits import convert_bits, three_point_table
from pyro_aeb.storage.checkpoint import from_bytes, to_bytes

KINDS = ("normal", "three-point", "normal, of bits", "three-point, of bits")
SIZES = (1, 13, 1000, LARGE - 1, LARGE, LARGE + 3)


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_noise(kind: str, like: torch.Tensor, generators: list[torch.Generator | None]) -> Noise:
    """As for an update as it is written, or as for one that is compiled."""
    kind, *bits = kind.split(", ")
    return Noise(kind, like, generators, bits=bool(bits))


def draw_steps(noise: Noise, steps: int = 2) -> torch.Tensor:
    """The numbers of some steps; copies, as the buffer is used again."""
    return torch.stack([convert_bits(noise.draw()).clone() for _ in range(steps)])


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
    numbers = draw_steps(
        make_noise(kind, torch.empty(100, dtype=dtype), [make_generator(1)]), steps
    ).double()
    for values, n in ((numbers.flatten(), numbers.numel()), (numbers, steps)):
        assert (values.mean(0).abs() < 5.0 * math.sqrt(1.0 / n)).all()
        assert ((values.square().mean(0) - 1.0).abs() < 5.0 * math.sqrt(2.0 / n)).all()
    # Neighbours in a step, and the same place in two steps: products have variance 1.
    for pairs in (numbers[:, 1:] * numbers[:, :-1], numbers[1:] * numbers[:-1]):
        assert pairs.mean().abs() < 5.0 * math.sqrt(1.0 / pairs.numel())


def test_every_value_of_the_table_is_drawn_as_often_as_it_is_there():
    numbers = Noise("three-point", torch.empty(10**6), [make_generator(2)]).draw()
    found, counts = numbers.unique(return_counts=True)
    expected, times = torch.tensor(three_point_table()).unique(return_counts=True)
    assert torch.equal(found, expected)
    p = times / 256
    error = (p * (1.0 - p) * numbers.numel()).sqrt()
    assert ((counts - p * numbers.numel()).abs() < 5.0 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_models_numbers_are_independent_of_one_another(kind):
    """Products of different ones have mean 0 and variance 1: neighbours, steps, chains."""
    numbers = draw_steps(
        make_noise(kind, torch.empty(2, LARGE), [make_generator(1), make_generator(2)]), 20
    ).double()
    n = numbers.numel()
    assert numbers.mean().abs() < 5.0 * math.sqrt(1.0 / n)
    assert (numbers.square().mean() - 1.0).abs() < 5.0 * math.sqrt(2.0 / n)
    neighbours = [numbers[..., d:] * numbers[..., :-d] for d in (1, 2, 3, 4, 8)]
    steps, chains = numbers[1:] * numbers[:-1], numbers[:, 0] * numbers[:, 1]
    for pairs in (*neighbours, steps, chains):
        assert pairs.mean().abs() < 5.0 * math.sqrt(1.0 / pairs.numel())


@pytest.mark.parametrize("kind", ["normal", "normal, of bits"])
def test_a_large_models_normal_numbers_pass_kolmogorov_and_smirnovs_test(kind):
    numbers = draw_steps(make_noise(kind, torch.empty(10**6), [make_generator(3)]), 1)[0]
    assert stats.kstest(numbers.double().numpy(), "norm").pvalue > 1e-6


# -- where they come from


def raw_words(seed: int, count: int, stream: int = 2) -> np.ndarray:
    return np.random.SFC64(np.random.SeedSequence([seed, stream])).random_raw(count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [LARGE, LARGE + 3, PIECE + 2])
def test_a_large_models_three_point_numbers_are_bytes_of_sfc64(size, dtype):
    found = Noise("three-point", torch.empty(size, dtype=dtype), [make_generator(7)]).draw()
    expected = torch.tensor(three_point_table(), dtype=dtype)[
        torch.from_numpy(raw_words(7, (size + 7) // 8).view(np.uint8)[:size]).long()
    ]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [LARGE, LARGE + 3, PIECE + 1])
def test_bits_for_a_compiled_update_are_words_of_sfc64(size):
    like = torch.empty(size)
    integers = Noise("normal", like, [make_generator(7)], bits=True).draw()
    expected = raw_words(7, (size + 1) // 2, stream=3).view(np.int32)[:size]
    assert torch.equal(integers, torch.from_numpy(expected))
    bytes_ = Noise("three-point", like, [make_generator(7)], bits=True)
    assert bytes_.draw().dtype == torch.uint8
    assert torch.equal(
        draw_steps(bytes_), draw_steps(Noise("three-point", like, [make_generator(7)]), 3)[1:]
    )


@pytest.mark.parametrize(("size", "dtype"), [(LARGE - 1, torch.float32), (LARGE, torch.float64)])
def test_no_bits_for_few_numbers_or_double_precision(size, dtype):
    like = torch.empty(size, dtype=dtype)
    for kind in ("normal", "three-point"):
        assert Noise(kind, like, [make_generator(7)], bits=True).draw().dtype == dtype


@pytest.mark.parametrize(
    ("size", "dtype"), [(LARGE, torch.float32), (LARGE, torch.float64), (13, torch.float32)]
)
def test_normal_numbers_are_torchs(size, dtype):
    found = draw_steps(Noise("normal", torch.empty(size, dtype=dtype), [make_generator(8)]))
    same = make_generator(8)
    expected = [torch.empty(size, dtype=dtype).normal_(generator=same) for _ in range(2)]
    assert torch.equal(found, torch.stack(expected))


def test_the_words_of_a_piece_are_all_that_is_in_memory_beside_the_numbers():
    noise = Noise("three-point", torch.empty(4 * PIECE), [make_generator(9)])
    tracemalloc.start()  # NumPy tells it of the words
    draw_steps(noise)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert PIECE <= peak < 1.1 * PIECE  # a byte a number


# -- the streams


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_seed_gives_the_same_numbers_again_and_every_step_others(kind, size):
    like = torch.empty(size)
    first, second, other = (
        draw_steps(make_noise(kind, like, [make_generator(s)]), 100) for s in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:50], first[50:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [13, LARGE])
def test_without_a_generator_torchs_own_serves(kind, size):
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(draw_steps(make_noise(kind, torch.empty(2, size), [None, None])))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][:, 0], found[0][:, 1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_chains_together_have_the_numbers_of_each_alone(kind, size, threads):
    torch.set_num_threads(threads)
    seeds = (7, 8, 9)
    together = draw_steps(
        make_noise(kind, torch.empty(3, size), [make_generator(s) for s in seeds])
    )
    for chain, seed in enumerate(seeds):
        alone = draw_steps(make_noise(kind, torch.empty(size), [make_generator(seed)]))
        assert torch.equal(together[:, chain], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(LARGE + 5,), (2, LARGE), (4, LARGE // 2), (10**6 + 1,)])
def test_the_number_of_threads_changes_no_number(kind, shape):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        chains = shape[0] if len(shape) > 1 else 1
        found.append(
            draw_steps(
                make_noise(kind, torch.empty(shape), [make_generator(i) for i in range(chains)])
            )
        )
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [13, LARGE])
def test_it_goes_on_from_a_saved_state(kind, size):
    own = make_generator(10)
    noise = make_noise(kind, torch.empty(size), [own])
    draw_steps(noise, 3)
    saved = to_bytes({"own": own.get_state(), "noise": noise.state()})
    expected = draw_steps(noise, 3)
    other = make_generator(11)
    again = make_noise(kind, torch.empty(size), [other])
    draw_steps(again, 1)
    states = from_bytes(saved, "the test", "own", "noise")
    other.set_state(states["own"])
    again.load(states["noise"])
    assert torch.equal(draw_steps(again, 3), expected)


def test_a_state_of_other_generators_is_refused():
    like = torch.empty(LARGE)
    for states in ([], [make_generator(0).get_state()], [torch.zeros(4, dtype=torch.int64)] * 2):
        with raises_with("the saved chain's random numbers", "resume with", error=ModelError):
            Noise("three-point", like, [make_generator(11)]).load(states)


def _send_draws(noise: Noise, results) -> None:
    torch.set_num_threads(1)  # as in every forked worker: torch's threads are not in a fork
    results.put([noise.draw().numpy().copy() for _ in range(3)])  # numbers or bits


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_process_draws_the_same(kind):
    torch.set_num_threads(2)
    noise, same = (make_noise(kind, torch.empty(LARGE), [make_generator(12)]) for _ in range(2))
    assert torch.equal(draw_steps(noise), draw_steps(same))
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    child = fork.Process(target=_send_draws, args=(noise, results), daemon=True)
    child.start()
    found = results.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    for numbers in found:
        assert torch.equal(torch.from_numpy(numbers), same.draw())


def test_another_kind_is_told_of():
    for kind in ("gaussian", None, "Normal"):
        with raises_with(f"noise is {kind!r}", "'normal'", "'three-point'", error=ValueError):
            AEBKernel(lambda: None, SGLD(1e-3), noise=kind)
    for kind in ("normal", "three-point"):
        AEBKernel(lambda: None, SGLD(1e-3), noise=kind)
