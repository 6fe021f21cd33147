# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Sums by group and the way back are those of an index with one entry a number."""

from __future__ import annotations

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_aeb.adaptation.segments import FEW, TILE, WIDTH, Segments


def one_group_each(*sizes: int) -> Segments:
    return Segments(sizes, tuple(range(len(sizes))), len(sizes))


CASES = {
    "one run": one_group_each(1000),
    "one group of three runs": Segments((3, TILE, 700), (0, 0, 0), 1),
    "three": one_group_each(5, TILE, 2 * TILE + 1),
    "three, one of them twice": Segments((5, 300, 7, 40), (0, 1, 2, 0), 3),
    "as many as are summed part by part": one_group_each(*range(1, FEW + 1)),
    "one more, all within a row": one_group_each(*range(1, FEW + 2)),
    "twenty that fill less than a row": one_group_each(*[TILE // 20 - 1] * 20),
    "twenty below a row": one_group_each(*range(30, 50)),
    "twenty of a row": one_group_each(*[TILE] * 20),
    "twenty of several rows": one_group_each(*[3 * TILE] * 20),
    "twenty above a row": one_group_each(*range(TILE + 1, TILE + 21)),
    "twenty of all sizes": one_group_each(*[1, TILE - 1, TILE, TILE + 1, 10 * TILE + 3] * 4),
    "a boundary at the end of a row": one_group_each(100, TILE - 100, 2 * TILE, 7, TILE - 7, 1),
    "twenty in several runs": Segments(tuple(range(1, 401, 10)), tuple(range(20)) * 2, 20),
    "one large and many small": one_group_each(20 * TILE, *[2] * 30),
    "one larger still": one_group_each(900 * TILE, *[2] * 30),
    "two large among small ones": one_group_each(*[1] * 20, 40 * TILE, *[3] * 20, 90 * TILE),
    "one large in many runs": Segments((TILE, 5) * 40, (0, 1, 0, 2) * 20, 3),
    "numbers without a row of one group": one_group_each(*[TILE // 2 + 1] * 9),
}


def group_of_each(groups: Segments) -> torch.Tensor:
    return torch.tensor(
        [g for g, n in zip(groups.index, groups.sizes, strict=True) for _ in range(n)]
    )


@pytest.mark.parametrize("chains", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_sums(name, chains):
    groups = CASES[name]
    index = group_of_each(groups)
    values = torch.randn(*chains, len(index), dtype=torch.float64)
    expected = torch.zeros(*chains, groups.count, dtype=torch.float64).index_add(-1, index, values)
    torch.testing.assert_close(groups.sum(values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chains", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_spreads(name, chains):
    groups = CASES[name]
    index = group_of_each(groups)
    by_group = torch.randn(*chains, groups.count)
    before = by_group.clone()
    found = groups.spread(by_group)
    assert torch.equal(found.expand(*chains, len(index)), by_group[..., index])
    assert torch.equal(by_group, before)


@pytest.mark.parametrize("name", CASES)
def test_lengths(name):
    groups = CASES[name]
    expected = torch.bincount(group_of_each(groups), minlength=groups.count)
    assert groups.lengths() == expected.tolist()


@pytest.mark.parametrize("name", CASES)
def test_a_part_of_a_longer_vector_is_summed_where_it_lies(name):
    """The sparse slab of several chains is no contiguous tensor."""
    groups = CASES[name]
    size = sum(groups.sizes)
    values = torch.randn(3, size + 5, dtype=torch.float64)[:, :size]
    torch.testing.assert_close(groups.sum(values), groups.sum(values.contiguous()))


@pytest.mark.parametrize(
    "sizes", [(10**6,), (10**6, 3, 5 * 10**5), (10**5,) * 20, (10**6, *[3] * 100)]
)
def test_single_precision_suffices_for_large_groups(sizes):
    """
    Summing in blocks, the error of a sum of positive numbers grows as the length of a block, the
    number of blocks, and no more: within 600 roundings here, one by one it would be 10^5 or more.
    """
    groups = one_group_each(*sizes)
    values = torch.rand(sum(sizes))
    exact = [math.fsum(part.tolist()) for part in values.split(sizes)]
    relative = groups.sum(values).double() / torch.tensor(exact, dtype=torch.float64) - 1.0
    assert relative.abs().max() < 600 * torch.finfo(torch.float32).eps / 2


def test_not_a_number_stays_in_its_group():
    groups = CASES["twenty of all sizes"]
    values = torch.ones(sum(groups.sizes))
    values[0] = torch.nan  # the first group is this number alone, in the second one's row
    values[-1] = torch.inf
    found = groups.sum(values)
    assert found[0].isnan() and found[-1].isinf()
    assert torch.equal(found[1:-1], torch.tensor(groups.lengths()[1:-1]))


@pytest.mark.parametrize("sizes", [(200 * TILE, *[2] * 3000), (2,) * 3000, (300 * TILE,) * 6])
def test_the_numbers_held_are_of_the_order_of_the_weights(sizes):
    """Not of the number of groups times the length of the longest."""
    tiles = one_group_each(*sizes)._tiles
    assert sum(part.numel() for part in tiles.members) <= 2 * WIDTH * sum(sizes)


def test_groups_of_similar_sizes_are_one_rectangle():
    """As in older versions, so that a run of theirs continues bit for bit."""
    assert len(CASES["twenty of all sizes"]._tiles.members) == 1


@pytest.mark.parametrize("method", ["spread", "sum"])
def test_nothing_is_written_in_place(method):
    """Code that torch's compiler made of a copy in place read it before it was written."""
    segments = Segments((1000,) * 10 + (3 * 10**5,), tuple(range(11)), 11)
    values = torch.rand(11 if method == "spread" else 310_000)
    graph = make_fx(lambda x: getattr(segments, method)(x))(values).graph
    operations = [node.target for node in graph.nodes if node.op == "call_function"]
    assert operations and not any(operation._schema.is_mutable for operation in operations)
