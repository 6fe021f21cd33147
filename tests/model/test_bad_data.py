# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Errors for bad data: raised at once, they say what was found, what was expected and what to do.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import N, P, dense_regression, sparse_regression
from pyro import poutine
from refusals import X, Y, raises_with, run_dense_model, run_model

# Data


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_data(bad):
    x, y = X.clone(), Y.clone()
    x[3, 1] = x[4, 2] = y[7] = bad
    with raises_with("'X' has 2 non-finite of 60 numbers", "remove or impute"):
        run_model(sparse_regression, x, Y)
    with raises_with("'y' has 1 non-finite of 20 numbers", "remove or impute"):
        run_model(sparse_regression, X, kwargs={"y": y})


def test_non_finite_data_in_variable_arguments():
    x = X.index_fill(1, torch.tensor([2]), math.nan)
    with raises_with("'X' has 20 non-finite of 60 numbers", "remove or impute"):
        run_model(lambda **data: sparse_regression(data["X"], data["y"]), kwargs={"X": x, "y": Y})
    with raises_with("has 20 non-finite of 60 numbers", "remove or impute"):
        run_model(lambda *data: sparse_regression(*data), x, Y)


def test_non_finite_data_of_the_models_own():
    y = Y.index_fill(0, torch.tensor([7]), math.nan)

    def observe(w):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=y)

    with raises_with("observed site 'y' has 1 non-finite of 20 values", "remove"):
        run_dense_model(observe)


def test_non_finite_data_under_a_mask():
    """The gradient of a masked NaN is NaN in torch: any number in its place will do."""
    y = Y.index_fill(0, torch.tensor([7]), math.nan)

    def observe(w):
        with pyro.plate("data", N), poutine.mask(mask=torch.isfinite(y)):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=y)

    with raises_with("observed site 'y' has 1 non-finite of 20 values", "fill", "mask"):
        run_dense_model(observe)


def test_data_outside_the_support():
    def observe(w):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Beta((X @ w).exp(), 1.0), obs=Y)  # Y is not in (0, 1)

    with raises_with("'y' ~ Beta has values outside its support", "-3.72", "data's coding"):
        run_dense_model(observe)


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_class_that_is_none(bad):
    labels = torch.arange(N) % 3
    labels[7] = bad

    def observe(w):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Categorical(logits=X * w), obs=labels)

    with raises_with(
        "'y' ~ Categorical has values outside its support", f"{bad} among", "count from 0"
    ):
        run_dense_model(observe)


def test_what_a_mask_leaves_out_may_be_anything():
    labels = torch.arange(N) % 3
    labels[7] = -1
    seen = labels >= 0

    def observe(w):
        with pyro.plate("data", N), pyro.poutine.mask(mask=seen):
            pyro.sample("y", dist.Bernoulli(logits=X @ w), obs=torch.where(seen, 1.0, 7.0))

    with pyro.validation_enabled(False):
        run_dense_model(observe)


def test_no_data():
    with raises_with("plate 'data'", "0", "at least 1"):
        run_model(sparse_regression, X[:0], Y[:0])


def test_an_observation_left_out():
    for options in ({}, {"batch_size": 5}):
        with raises_with("'y'", "obs="):
            run_model(sparse_regression, X, kwargs=options)


def test_observations_of_another_length():
    def whole(w):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y[:10])

    with raises_with("observed site 'y' has values of shape (10,), expected (20,)", "obs=y[i]"):
        run_dense_model(whole)
    with raises_with("out of bounds", "{'X': 20, 'y': 10}", "expected as many"):
        run_model(sparse_regression, X, Y[:10])


def test_an_index_of_the_models_own_that_is_out_of_bounds():
    """It is not about lengths, so the error is not replaced."""
    with pytest.raises(IndexError, match="out of bounds"):
        run_dense_model(lambda w: pyro.sample("y", dist.Normal(w[P], 1.0), obs=Y[0]))


def test_observations_with_an_axis_too_many():
    with raises_with("observed site 'y' has values of shape (20, 1), expected (20,)"):
        run_model(sparse_regression, X, Y[:, None])

    def without_a_plate(w):
        pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y[:, None])  # broadcasts to (20, 20)

    with raises_with("observed site 'y' has values of shape (20, 1), expected (20,)"):
        run_dense_model(without_a_plate)

    def as_an_event(w):
        pyro.sample("y", dist.Normal(X @ w, 1.0).to_event(1), obs=Y[:, None])

    with raises_with("observed site 'y' has values of shape (20, 1), expected (20,)"):
        run_dense_model(as_an_event)


def test_a_batch_of_another_size_than_its_plate():
    def observe(w):
        with pyro.plate("data", N, subsample_size=5):
            pyro.sample("y", dist.Normal(X[:8] @ w, 1.0), obs=Y[:8])

    with raises_with("plate('data')", "5 vs 8", "expected one datum", "obs=y[i]"):
        run_dense_model(observe)

    def observe_scalars(w):
        with pyro.plate("data", N, subsample_size=5):
            pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=Y[:8])

    with raises_with("observed site 'y' has values of shape (8,), expected (5,)", "obs=y[i]"):
        run_dense_model(observe_scalars)


@pytest.mark.parametrize("size", [N + 1, 0, -1])
def test_a_batch_larger_than_the_data_or_empty(size):
    with raises_with("plate 'data'", str(size), "20"):
        run_model(sparse_regression, X, Y, kwargs={"batch_size": size})


def test_a_missing_argument():
    with raises_with("missing 1 required positional argument: 'X'", error=TypeError):
        run_model(sparse_regression)


# Dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16], ids=str)
def test_data_of_another_dtype_than_the_sites(dtype):
    with raises_with("'X'", str(dtype), "torch.float32", "set_default_dtype"):
        run_model(sparse_regression, X.to(dtype), Y)


@pytest.mark.parametrize("model", [sparse_regression, dense_regression])
def test_observations_of_another_dtype_than_the_sites(model):
    with raises_with("'y'", "torch.float64", "torch.float32"):
        run_model(model, X, Y.double())


def test_sites_of_two_dtypes():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    with raises_with(
        "different dtypes", "'a': torch.float32", "'b': torch.float64", "tensors of one"
    ):
        run_model(model)


def test_data_on_another_device():
    with raises_with("'X'", "meta", "cpu"):
        run_model(sparse_regression, X.to("meta"), Y)
