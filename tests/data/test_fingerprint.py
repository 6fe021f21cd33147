# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Fingerprints of a run's data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_aeb.data.fingerprint import check_same, fingerprint

X = torch.arange(12.0).reshape(4, 3)
BASE = {"a": X, "nested": {"b": [X, X.long()]}, "n": 3, "word": "x", "none": None}


def fingerprint_with(**changes):
    return fingerprint((X,), {**BASE, **changes})


def test_the_same_arguments_are_the_same():
    copy = fingerprint((X.clone(),), {**BASE, "a": X.clone()})
    check_same(fingerprint_with(), copy)
    assert copy == fingerprint_with()


@pytest.mark.parametrize(
    "name, value, named",
    [
        ("a", X + 1, "'a'"),
        ("a", X.double(), "'a'"),
        ("a", X.reshape(3, 4), "'a'"),
        ("a", X.flip(0), "'a'"),  # the same data in another order have other minibatches
        ("a", X.T.reshape(4, 3), "'a'"),
        ("n", 4, "'n'"),
        ("n", 3.0, "'n'"),
        ("word", "y", "'word'"),
        ("none", False, "'none'"),
        ("nested", {"b": [X, X.long() + 1]}, "'nested'['b'][1]"),
        ("nested", {"b": [X]}, "'nested'['b'][1]"),
        ("new", 1, "'new'"),
        ("new", X, "'new'"),
    ],
)
def test_a_change_is_found_and_named(name, value, named):
    with pytest.raises(ValueError) as info:
        check_same(fingerprint_with(), fingerprint_with(**{name: value}))
    message = str(info.value)
    assert message.startswith(f"argument {named} is ")
    assert "but the run began with" in message and "make another MCMC object" in message


def test_a_missing_argument_is_named():
    with pytest.raises(ValueError, match="argument 'n' is missing, but the run began with 3"):
        check_same(fingerprint_with(), [pair for pair in fingerprint_with() if pair[0] != "'n'"])
    with pytest.raises(ValueError, match="argument 0 is missing"):
        check_same(fingerprint_with(), fingerprint((), BASE))


def test_numpy_arrays_are_compared():
    array = np.arange(6.0).reshape(2, 3)
    first = fingerprint((array,), {})
    check_same(first, fingerprint((array.copy(order="F"),), {}))
    with pytest.raises(ValueError, match="argument 0 is float64 of shape"):
        check_same(first, fingerprint((array[::-1],), {}))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.eye(3).to_sparse(),
        torch.ones(4).expand(3, 4),
        torch.ones(3, requires_grad=True) * 2,
        torch.tensor([float("nan"), float("inf")]),
    ],
)
def test_every_kind_of_tensor_has_a_fingerprint(tensor):
    (word,) = fingerprint((tensor,), {})
    assert str(tuple(tensor.shape)) in word[1]
    check_same([word], fingerprint((tensor.detach().clone(),), {}))


def test_fingerprints_do_not_depend_on_the_number_of_threads():
    x = torch.randn(100_000)
    words = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        words.append(fingerprint((x,), {}))
    assert words[0] == words[1]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


def test_the_fingerprint_of_a_loader_is_its_sizes():
    def loader(n=8, batch=2):
        return fingerprint((DataLoader(TensorDataset(torch.zeros(n)), batch_size=batch),), {})

    check_same(loader(), loader())
    with pytest.raises(ValueError, match="9 data in batches of 2.*8 data in batches of 2"):
        check_same(loader(), loader(n=9))
    with pytest.raises(ValueError, match="in batches of 4"):
        check_same(loader(), loader(batch=4))
    assert "uncounted" in fingerprint((DataLoader(Endless()),), {})[0][1]
