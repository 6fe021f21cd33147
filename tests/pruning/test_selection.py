# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Counts and selection of weights are exact, against sorting and against enumeration."""

from __future__ import annotations

import random
from unittest import mock

import numpy as np
import pytest
import torch

from pyro_aeb.pruning import selection
from pyro_aeb.pruning.selection import (
    SAMPLED,
    _all_but_lowest_on_device,
    _kth_lowest,
    _sample,
    all_but_enough,
    all_but_lowest,
    apportion,
)

INFINITY = float("inf")


def random_layouts(number: int):
    """Random layer sizes, many of them tiny beside a large one."""
    rng = random.Random(0)
    for _ in range(number):
        yield [rng.choice([1, 2, 3, 5, 40, rng.randint(1, 90)]) for _ in range(rng.randint(1, 9))]


class TestApportion:
    def test_by_hand(self):
        # Shares of 5 among 4, 4 and 2 are 2, 2 and 1.
        assert apportion(5, [4, 4, 2], [1] * 3, [0] * 3) == (2, 2, 1)
        # Shares of 4 among 3, 3 and 1 are 12/7, 12/7, 4/7. Each has its floor, 1 + 1 + 0, and two
        # more go to the layers that fill a whole weight first: the large two at 2 * 7/3 = 4.67,
        # the small one only at 7.
        assert apportion(4, [3, 3, 1], [1] * 3, [0] * 3) == (2, 2, 0)
        # Three among 3, 3, 1, 1 and 1 are 1, 1 and a third each; the fourth is best given to both
        # of the large layers, unless the small one is to keep what it has.
        assert apportion(3, [3, 3, 1, 1, 1], [1] * 5, [0] * 5) == (1, 1, 1, 0, 0)
        assert apportion(4, [3, 3, 1, 1, 1], [1] * 5, [0] * 5) == (2, 2, 0, 0, 0)
        assert apportion(4, [3, 3, 1, 1, 1], [1] * 5, (1, 1, 1, 0, 0)) == (2, 1, 1, 0, 0)

    def test_the_sum_is_the_total_and_each_layer_is_within_a_weight_of_its_share(self):
        for sizes in random_layouts(100):
            whole, none = sum(sizes), [0] * len(sizes)
            for total in range(whole + 1):
                counts = apportion(total, sizes, [1] * len(sizes), none)
                assert sum(counts) == total
                for count, size in zip(counts, sizes, strict=True):
                    assert abs(count - total * size / whole) < 1
                    assert 0 <= count <= size

    @pytest.mark.parametrize("stride", [1, 2, 3, 7])
    def test_a_growing_total_can_keep_what_it_has_and_stay_exact(self, stride):
        for sizes in random_layouts(200):
            whole, counts = sum(sizes), (0,) * len(sizes)
            for total in range(0, whole + 1, stride):
                before = counts
                counts = apportion(total, sizes, [1] * len(sizes), before)
                assert sum(counts) == total
                for now, then, size in zip(counts, before, sizes, strict=True):
                    assert now >= then and abs(now - total * size / whole) < 1

    def test_units_are_whole_and_each_layer_within_one_of_its_share(self):
        rng = random.Random(1)
        for _ in range(200):
            layers = rng.randint(1, 8)
            units = [rng.choice([1, 3, 9, 50]) for _ in range(layers)]
            sizes = [unit * rng.randint(1, 20) for unit in units]
            whole = sum(sizes)
            for total in range(0, whole + 1, 7):
                counts = apportion(total, sizes, units, [0] * layers)
                for count, size, unit in zip(counts, sizes, units, strict=True):
                    assert abs(count - total * size / whole / unit) < 1
                    assert 0 <= count * unit <= size

    def test_units_of_one_size_meet_the_total_to_half_a_unit(self):
        sizes, units = [16 * 9] * 7, [9] * 7
        for total in range(0, sum(sizes) + 1):
            # Rounding layer by layer would miss by seven times that.
            assert abs(9 * sum(apportion(total, sizes, units, [0] * 7)) - total) <= 4.5


def make_scores(kind: str, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(n, dtype=dtype, generator=generator).abs()
    taken = torch.zeros(n, dtype=torch.bool)
    _sample(taken)[:] = True
    return {
        "distinct": normal,
        "few values": (normal * 3).floor(),
        "all equal": torch.ones(n, dtype=dtype),
        "mostly zero": normal * (normal > 1.5),
        "sorted": normal.sort().values,
        "infinite": torch.where(normal > 1.0, INFINITY, normal),
        # What the sample shows is nothing like the rest.
        "misleading": torch.where(taken, 100.0 + normal, normal),
        "no help": torch.where(taken, 100.0 * (normal - 0.7), 0.7 + 0.01 * normal),
    }[kind]


KINDS = ["distinct", "few values", "all equal", "mostly zero", "sorted", "infinite", "misleading"]
KINDS += ["no help"]


@pytest.mark.parametrize("select", [all_but_lowest, _all_but_lowest_on_device])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 101, SAMPLED + 37])
class TestAllButLowest:
    def counts(self, select, n):
        ends = {0, n} if select is all_but_lowest else set()
        return sorted(ends | {c for c in (1, n // 10, n // 2, (9 * n) // 10, n - 1) if 0 < c < n})

    def test_the_count_is_exact_and_no_pruned_score_exceeds_a_kept_one(self, select, kind, n):
        values = make_scores(kind, n)
        for count in self.counts(select, n):
            stays = select([values], count)
            assert int((~stays).sum()) == count
            if 0 < count < n:
                assert values[~stays].max() <= values[stays].min()

    def test_a_second_key_breaks_ties_and_nothing_else(self, select, kind, n):
        values, second = make_scores(kind, n), torch.rand(n)
        for count in self.counts(select, n):
            stays = select([values, second], count)
            expected = np.zeros(n, dtype=bool)
            expected[np.lexsort((second.numpy(), values.numpy()))[count:]] = True
            assert np.array_equal(stays.numpy(), expected)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_large_remainder_is_sampled_again(share):
    values = np.random.default_rng(0).random(2**18, np.float32)
    count = int(share * len(values))
    with mock.patch.object(selection, "_kth_lowest", wraps=_kth_lowest) as again:
        found = _kth_lowest(values, count)
    assert found == np.sort(values)[count - 1]
    looked_at = [len(call.args[0]) for call in again.call_args_list]
    assert looked_at[0] >= SAMPLED and looked_at[-1] < SAMPLED


def test_ties_do_not_take_more_than_their_number():
    # What "all up to the threshold" gets wrong: the second smallest value is 1, and so are four.
    values = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 2.0])
    assert int((values <= values.kthvalue(2).values).sum()) == 5
    assert int((~all_but_lowest([values], 2)).sum()) == 2


def test_double_precision_is_not_rounded():
    values = 1.0 + torch.arange(50.0, dtype=torch.float64) * 1e-12
    assert all_but_lowest([values.flip(0)], 20).tolist() == [True] * 30 + [False] * 20


def test_nan_is_kept():
    values = torch.tensor([3.0, float("nan"), 1.0, 2.0])
    assert all_but_lowest([values], 2).tolist() == [True, True, False, False]


def test_a_leading_axis_of_chains():
    values = torch.randn(3, 50)
    stays = all_but_lowest([values], 20)
    for row, own in zip(stays, values, strict=True):
        assert torch.equal(row, all_but_lowest([own], 20))


class TestAllButEnough:
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    sizes = torch.tensor([10, 3, 7, 4, 2])

    @pytest.mark.parametrize(
        ("total", "gone"),
        # In the order of their scores: entries 1, 3, 4, 2, 0, of 3, 4, 2, 7 and 10 weights.
        [(0, []), (1, [1]), (3, [1]), (4, [1, 3]), (7, [1, 3]), (8, [1, 3, 4]), (26, range(5))],
    )
    def test_the_fewest_that_reach_the_total_are_pruned(self, total, gone):
        stays = all_but_enough(self.scores, self.sizes, total)
        assert (~stays).nonzero().flatten().tolist() == sorted(gone)

    def test_ties_do_not_take_more(self):
        stays = all_but_enough(torch.zeros(6), torch.full((6,), 4), 9)
        assert int((~stays).sum()) == 3
