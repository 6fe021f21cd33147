# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Fingerprints of a run's data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from pyro_aeb.data.fingerprint import check_same, fingerprint, warn_of_opaque

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


# -- data inside containers


@dataclass
class Table:
    y: torch.Tensor
    n: int = 3


@dataclass(slots=True)
class Slotted:
    y: torch.Tensor


class Own:
    def __init__(self, y):
        self.y, self.calls, self.table = y, 0, {"y": [y]}


class Squares(torch.utils.data.Dataset):
    def __init__(self, y):
        self.y = y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.y[i] ** 2


class Batches:
    """An iterable of batches that is no DataLoader."""

    def __init__(self, y):
        self.data, self.order = y, torch.randperm(len(y))

    def __iter__(self):
        return iter(self.data[self.order].split(2))


def frame(y):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"y": y.numpy(), "name": ["a", None, *["b"] * (len(y) - 2)]})


CONTAINERS = {
    "data frame": frame,
    "series": lambda y: frame(y)["y"],
    "dataclass": Table,
    "slots": Slotted,
    "object": Own,
    "object in a list": lambda y: [Own(y)],
    "dataclass in a dataclass": lambda y: Table(Table(y)),
    "numbers": lambda y: y.tolist(),
    "nested numbers": lambda y: {"y": [[v, v] for v in y.tolist()]},
    "array in a list": lambda y: [y.numpy()],
    "array of objects": lambda y: np.array([str(v) for v in y.tolist()], dtype=object),
    "dates": lambda y: y.numpy().astype("datetime64[s]"),
    "loader": lambda y: DataLoader(TensorDataset(y), batch_size=2, shuffle=True),
    "dataset of one's own": lambda y: DataLoader(Squares(y), batch_size=2),
    "part of a dataset": lambda y: DataLoader(Subset(TensorDataset(y), [0, 1, 2, 3])),
    "iterable": Batches,
    "array of tensors": lambda y: np.array([Table(y), None], dtype=object),
    "ragged array": lambda y: np.array([y.tolist(), [1.0]], dtype=object),
    "series of words": lambda y: frame(y)["y"].astype(str),
    "mapping of objects": lambda y: {"a": {"b": (Own(y), "word")}},
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_other_data_inside_a_container_are_found(make):
    y = torch.arange(6.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = fingerprint((make(y),), {})
        warn_of_opaque(first)
    check_same(first, fingerprint((make(y.clone()),), {}))
    with pytest.raises(ValueError, match="make another MCMC object"):
        check_same(first, fingerprint((make(y + 100.0),), {}))


def test_counters_and_paths_of_an_object_are_not_its_data():
    data = Own(X)
    first = fingerprint((data,), {})
    data.calls, data.path, data.files = 5, "elsewhere", ["elsewhere/0"]
    assert fingerprint((data,), {}) == first
    data.labels = [1, 2]
    assert fingerprint((data,), {}) != first
    batches = Batches(X)
    first = fingerprint((batches,), {})
    batches.order = batches.order.flip(0)
    assert fingerprint((batches,), {}) == first
    data.table["itself"] = data  # a cycle
    fingerprint((data,), {})


def test_what_cannot_be_compared_is_said():
    data = fingerprint((), {"x": X, "batches": (X for _ in range(3))})
    with pytest.warns(UserWarning, match="argument 'batches' is a generator, which cannot be"):
        warn_of_opaque(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_opaque(fingerprint((X, torch.nn.Linear(2, 1), len), {"x": BASE}))


def test_descriptions_of_version_0_1_are_part_of_those_of_today():
    args = (X, [X.numpy()], Table(X))
    old, new = fingerprint(args, BASE, contents=False), fingerprint(args, BASE)
    assert {name for name, _ in old} == {"0", "'a'", "'nested'['b'][0]", "'nested'['b'][1]"} | {
        "'n'",
        "'word'",
        "'none'",
    }
    assert set(old) < set(new)
