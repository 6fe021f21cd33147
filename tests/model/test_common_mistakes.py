# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Mistakes of a first run: each gets an error that says the call that mends it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import sparse_regression
from refusals import X, Y, raises_with, run_dense_model, run_model

FLOATS = "dtype=torch.float32"


def run_repaired(error: Exception, **data: Any) -> None:
    """Run the lines of an error, and then the model on the tensors that they make."""
    lines = str(error).partition("; write ")[2].partition(" before the run")[0].split(" (")[0]
    names: dict[str, Any] = {"torch": torch, **data}
    if "pandas" in lines:
        names["pandas"] = pytest.importorskip("pandas")
    exec(lines, names)
    run_model(sparse_regression, names["X"], kwargs={"y": names["y"]})


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_numpy_arrays(kind: Any) -> None:
    data = {"X": X.numpy().astype(kind), "y": Y.numpy().astype(kind)}
    line = f"X = torch.tensor(X, {FLOATS}); y = torch.tensor(y, {FLOATS})"
    with raises_with("not a tensor: 'X' (ndarray), 'y' (ndarray)", line) as caught:
        run_model(sparse_regression, data["X"], data["y"])
    run_repaired(caught.value, **data)


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    data = {"X": pandas.DataFrame(X.numpy()), "y": pandas.Series(Y.numpy())}
    line = f"X = torch.tensor(X.to_numpy(), {FLOATS}); y = torch.tensor(y.to_numpy(), {FLOATS})"
    with raises_with("not a tensor: 'X' (DataFrame), 'y' (Series)", line) as caught:
        run_model(sparse_regression, data["X"], data["y"])
    run_repaired(caught.value, **data)


def test_a_data_frame_with_words() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X.numpy()[:, :2])
    frame["city"] = ["a", "b"] * (len(X) // 2)
    with raises_with("'X' (DataFrame)", "pandas.get_dummies(X)", "not numbers") as caught:
        run_model(sparse_regression, frame, Y)
    lines = str(caught.value).partition("; write ")[2].split(" (some")[0]
    names = {"torch": torch, "pandas": pandas, "X": frame}
    exec(lines, names)
    assert names["X"].shape == (len(X), 4)


def test_lists() -> None:
    with raises_with("not a tensor: 'X' (list), 'y' (list)", "torch.tensor(X,") as caught:
        run_model(sparse_regression, X.tolist(), Y.tolist())
    run_repaired(caught.value, X=X.tolist(), y=Y.tolist())
    with raises_with("not a tensor: 'y' (list)"):
        run_model(sparse_regression, X, Y.tolist())


def test_a_target_alone_that_is_no_tensor() -> None:
    with raises_with("not a tensor: 'y' (ndarray)", f"y = torch.tensor(y, {FLOATS})"):
        run_model(sparse_regression, X, Y.numpy().astype(float))


def classify(x: Any, labels: Any) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1], 3]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w), obs=labels)


LABELS = torch.arange(len(X)) % 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_labels_of_any_number_type(dtype: torch.dtype) -> None:
    run_model(classify, X, LABELS.to(dtype), adaptation=None)


def test_labels_that_are_no_tensor() -> None:
    with raises_with("'labels' (ndarray)", "labels = torch.tensor(labels) before"):
        run_model(classify, X, LABELS.numpy(), adaptation=None)  # integers remain integers
    words = np.array(["a", "b", "c"])[LABELS.numpy()]
    with raises_with("'labels' (ndarray)", "torch.tensor(pandas.factorize(labels)[0])"):
        run_model(classify, X, words, adaptation=None)


def test_a_model_that_takes_arrays_gets_them() -> None:
    """What runs is left alone."""

    def of_arrays(x: Any, y: Any) -> None:
        sparse_regression(torch.as_tensor(x), torch.as_tensor(y))

    run_model(of_arrays, X.numpy(), Y.numpy())


def test_a_failure_of_the_models_own_is_not_replaced() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        run_dense_model(lambda w: pyro.sample("y", dist.Normal(w + "1", 1.0), obs=Y))


@pytest.mark.parametrize("batch", [None, 5])
def test_a_target_that_is_longer_than_the_features(batch: int | None) -> None:
    longer = torch.cat([Y, Y[:3]])
    with raises_with("'y' has 23 data and 'X' shape (20, 3)", "leave out", "y[:20]"):
        run_model(sparse_regression, X, longer, kwargs={"batch_size": batch})
    run_model(sparse_regression, X, longer[:20], kwargs={"batch_size": batch})


def test_features_that_are_transposed() -> None:
    with raises_with("'y' has 20 data and 'X' shape (3, 20)", "give X.T"):
        run_model(sparse_regression, X.T, Y)


def test_arguments_of_other_lengths_that_are_no_target() -> None:
    """A series whose model leaves out its first value, and a table that rows look up."""

    def autoregression(y: torch.Tensor, months: torch.Tensor, table: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(months)):
            pyro.sample("y", dist.Normal(w * y[:-1] + table[months], 1.0), obs=y[1:])

    months, table = torch.arange(19) % 12, torch.zeros(30)
    run_model(autoregression, Y, months, table, adaptation=None)


def test_rows_without_a_label_have_a_plate_of_their_own() -> None:
    """The features are longer than the labels, and those of the other rows are observed, too."""

    def half_labelled(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("labelled", len(y)) as i:
            pyro.sample("y", dist.Normal(w, 1.0), obs=y[i])
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[i])
        with pyro.plate("others", len(x) - len(y)) as j:
            pyro.sample("z", dist.Normal(w, 1.0), obs=x[len(y) + j])

    run_model(half_labelled, Y, Y[:12] + 1.0, adaptation=None)


def test_double_beside_single() -> None:
    with raises_with("'X' is torch.float64", "X.to(torch.float32)"):
        run_model(sparse_regression, X.double(), Y.double())
    with raises_with("'y' has values of torch.float64", "y.to(torch.float32)"):
        run_model(sparse_regression, X, Y.double())


def test_a_target_that_is_a_column() -> None:
    with raises_with("values of shape (20, 1), expected (20,)", "y.squeeze(-1)"):
        run_model(sparse_regression, X, Y[:, None])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes")
def test_other_errors_note_the_shapes_of_the_data() -> None:
    with pytest.raises(IndexError, match="tuple index out of range") as caught:
        run_model(sparse_regression, Y, X)
    assert caught.value.__notes__ == [
        "The data that the model ran on: 'X' of shape (20,), 'y' of shape (20, 3)."
    ]
