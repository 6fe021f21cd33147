# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Arguments of the model: batches of a DataLoader, and operations on the tensors in them."""

from __future__ import annotations

from collections import Counter, UserDict
from typing import NamedTuple

import pyro
import pytest
import torch
from loader_data import DATA, X, Y, collate_unchanged, first_batches, shuffling_loader
from models import N
from torch.utils.data import DataLoader, WeightedRandomSampler

from pyro_aeb.data.arguments import move_to_device, stack, vmap_axes
from pyro_aeb.data.iterables import open_arguments
from pyro_aeb.data.loaders import FixedArguments, LoaderArguments

# Batches


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    "batch, args, kwargs",
    [
        ((1, 2), (1, 2), {}),
        ([1, 2], (1, 2), {}),
        (Pair(1, 2), (1, 2), {}),
        ({"x": 1, "y": 2}, (), {"x": 1, "y": 2}),
        (1, (1,), {}),
    ],
    ids=["tuple", "list", "namedtuple", "dict", "one"],
)
def test_a_batch_is_unpacked(batch, args, kwargs):
    loader = DataLoader([batch], batch_size=None, collate_fn=collate_unchanged)
    source = LoaderArguments(loader, {"flag": True}, seed=None)
    assert source.next() == (args, {**kwargs, "flag": True})


def test_peek_does_not_advance():
    source = LoaderArguments(DataLoader(torch.arange(4), batch_size=2), {}, seed=None)
    first = source.peek()
    assert first is source.peek() and first is source.next()
    assert source.next().args[0].tolist() == [2, 3]


def test_epochs_follow_one_another_and_each_has_every_datum_once():
    pyro.set_rng_seed(3)
    loader = DataLoader(torch.arange(10), batch_size=4, shuffle=True)
    batches = [batch.args[0].tolist() for batch in first_batches(loader, 9)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [sum(batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each shuffled anew


def test_a_loader_with_weights_counts_every_datum_as_often_as_drawn():
    sampler = WeightedRandomSampler([1.0] * N, 12)
    source = LoaderArguments(DataLoader(DATA, batch_size=4, sampler=sampler), {}, seed=0)
    assert source.sizes == {N, 12}
    assert Counter(len(source.next().args[1]) for _ in range(6)) == {4: 6}


def test_without_a_loader_the_arguments_are_fixed():
    source = open_arguments((X, Y), {"batch_size": 5}, seeds=[None])
    assert isinstance(source, FixedArguments) and source.sizes is None
    assert source.next() is source.next() is source.peek()


# Devices


def test_tensors_inside_a_batch_are_moved():
    nested = {"x": X, "more": [Pair(X, Y), "text"]}
    loader = DataLoader([nested], batch_size=None, collate_fn=collate_unchanged)
    source = LoaderArguments(loader, {"w": X}, seed=None)
    source.peek()
    source.move_to(torch.device("meta"))
    kwargs = source.next().kwargs
    assert isinstance(kwargs["more"][0], Pair) and kwargs["more"][1] == "text"
    tensors = [kwargs["x"], kwargs["w"], *kwargs["more"][0]]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert source.next().kwargs["x"].device.type == "meta"  # and so does the next one


def test_an_object_with_a_method_to_is_moved():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    loader = DataLoader([(packed, 1)], batch_size=None, collate_fn=collate_unchanged)
    source = LoaderArguments(loader, {}, seed=None)
    source.move_to(torch.device("meta"))
    found, _ = source.next().args
    assert found.data.device.type == "meta" and found.batch_sizes.device.type == "cpu"


class Encoding(UserDict):
    """A mapping that can move itself, as tokenizers return."""

    def to(self, device):
        return Encoding({name: value.to(device) for name, value in self.items()})


def test_a_mapping_with_a_method_to_is_moved_whole_and_stacked_by_names():
    encoding = Encoding(a=X, b=Y)
    moved = move_to_device([encoding], torch.device("meta"))[0]
    assert isinstance(moved, Encoding) and moved["a"].device.type == "meta"
    stacked = stack(encoding, {"b": Y + 1.0, "a": X})
    assert torch.equal(stacked["b"], torch.stack([Y, Y + 1.0]))


# Nested tensors


class Items(list):
    """A list of a class of its own."""


def test_lists_and_tuples_keep_their_class():
    nested = (Items([X, 1]), Pair(X, torch.Size([2])), {"a": [Y]})
    stacked = stack(nested, (Items([X + 1.0, 1]), Pair(X, torch.Size([2])), {"a": [Y]}))
    items, pair, mapping = stacked
    assert isinstance(items, Items) and torch.equal(items[0], torch.stack([X, X + 1.0]))
    assert items[1] == 1 and pair.y == torch.Size([2]) and mapping["a"][0].shape == (2, *Y.shape)
    assert vmap_axes(nested) == (Items([0, None]), Pair(0, None), {"a": [0]})


def test_lists_of_different_lengths_cannot_be_stacked():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        stack([X, Y], [X])


# Random numbers


def test_a_seeded_loader_leaves_the_global_generator_alone():
    source = LoaderArguments(shuffling_loader(), {}, seed=5)
    before = torch.get_rng_state()
    for _ in range(9):
        source.next()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_does_not_depend_on_the_number_of_workers():
    alone, helped = (first_batches(shuffling_loader(num_workers=n), 5, seed=3) for n in (0, 1))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.args[0], b.args[0])
