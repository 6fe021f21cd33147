# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Missing data: numbers that are not finite, and masks."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from many_chains import run_together
from models import N, P, linear_data
from pyro import poutine
from pyro.infer import MCMC
from refusals import raises_with, run_dense_model, run_model
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb

X, Y = linear_data()
OK = torch.arange(N) % 4 > 0
MISSING = torch.where(OK, Y, math.nan)
EXACT = float(Y[OK].sum() / (OK.sum() + 1 / 25))
"""The mean of m ~ Normal(0, 5) given the y ~ Normal(m, 1) that are not missing."""


def masked_mean(y, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    ok = ~torch.isnan(y)
    with pyro.plate("data", N, subsample_size=size) as i, poutine.mask(mask=ok[i]):
        pyro.sample("y", dist.Normal(m, 1.0), obs=torch.where(ok, y, 0.0)[i])


def masked_in_the_distribution(y):
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    ok = torch.isfinite(y)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(m, 1.0).mask(ok), obs=y.nan_to_num(7.0, 7.0, 7.0))


def masked_batch(y):
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", N, subsample=y), poutine.mask(mask=~y.isnan()):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y.nan_to_num())


def left_out(y):
    """Missing data are not indexed at all."""
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", int((~y.isnan()).sum())):
        pyro.sample("y", dist.Normal(m, 1.0), obs=y[~y.isnan()])


RUNS = {
    "poutine.mask": (masked_mean, (MISSING,)),
    "minibatches": (lambda y: masked_mean(y, 5), (MISSING,)),
    "dist.mask": (masked_in_the_distribution, (MISSING,)),
    "infinite": (masked_in_the_distribution, (MISSING.nan_to_num(math.inf),)),
    "loader": (masked_batch, (DataLoader(TensorDataset(MISSING), 5, shuffle=True),)),
    "left out": (left_out, (MISSING,)),
}


@pytest.mark.parametrize("model, args", RUNS.values(), ids=RUNS)
def test_data_that_the_model_masks_may_be_missing(model, args):
    draws = run_together(model, aeb.SGLD(1e-2), 300, 20, *args, steps_per_draw=10)
    assert float(draws["m"].mean()) == pytest.approx(EXACT, abs=0.08)


# Missing data that reach the density, or its gradient


def unmasked_where(index):
    def model(y):
        ok = ~torch.isnan(y)
        ok[index] = True
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        with pyro.plate("data", N, subsample_size=4) as i, poutine.mask(mask=ok[i]):
            pyro.sample("y", dist.Normal(m, 1.0), obs=torch.where(ok[i] & ~ok[i], 0.0, y[i]))

    return model


@pytest.mark.parametrize("index", [0, 16])
def test_one_that_is_not_masked_is_found_in_whichever_batch_it_is(index):
    with raises_with("'y' has 5 non-finite of 20 numbers", "remove or impute", "mask"):
        run_model(unmasked_where(index), MISSING)


def test_a_mask_without_a_finite_number_in_its_place():
    """The gradient of a masked NaN is NaN in torch."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 5.0))
        with pyro.plate("data", N), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.StudentT(3.0, m, 1.0), obs=y)

    with raises_with("'y' has 5 non-finite", "gradient of site 'm'", "fill", "torch.where(ok"):
        run_model(model, MISSING)


def test_missing_predictors_under_a_mask():
    x = torch.where(OK[:, None], X, math.nan)

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N), poutine.mask(mask=OK):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=Y)

    with raises_with("'x' has 15 non-finite of 60 numbers", "remove or impute", "fill"):
        run_model(model, x)


def test_missing_data_in_a_latents_prior():
    def model(y):
        m = pyro.sample("m", dist.Normal(y.mean(), 5.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y.nan_to_num())

    with pyro.validation_enabled(False), raises_with("'y' has 5 non-finite", "fails"):
        run_model(model, MISSING)


def test_a_step_that_diverges_is_not_put_down_to_masked_data():
    with raises_with("step size", error=aeb.NonFiniteError):
        run_model(masked_mean, MISSING, transition=aeb.SGLD(1e30), draws=300)


# dist.mask is poutine.mask


def masked_regression(way, prior=None):
    s2 = pyro.sample("s2", dist.InverseGamma(0.5, 0.5))
    sparse = aeb.SSGL(0.05, 4.0, 0.2, s2.sqrt()).expand([P]).to_event(1)
    b = pyro.sample("b", sparse)
    c = dist.Normal(0.0, 1.0).expand([2])
    some = torch.tensor([True, False])
    if way == "poutine":
        with pyro.plate("two", 2), poutine.mask(mask=some):
            c = pyro.sample("c", c)
        with pyro.plate("data", N), poutine.mask(mask=OK):
            pyro.sample("y", dist.Normal(X @ b + c.sum(), s2.sqrt()), obs=Y)
    else:
        with pyro.plate("two", 2):
            c = pyro.sample("c", c.mask(some))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ b + c.sum(), s2.sqrt()).mask(OK), obs=Y)


def test_a_mask_of_a_distribution_is_that_of_a_handler():
    """In the likelihood with the learned sigma, and in a prior: bit for bit."""
    draws = []
    for way in ("poutine", "dist"):
        adaptation = aeb.StochasticApproximation(0.1)
        kernel = aeb.AEBKernel(masked_regression, aeb.SGLD(1e-3), adaptation, seed=0)
        mcmc = MCMC(kernel, 20, 5, disable_progbar=True)
        mcmc.run(way)
        draws.append(mcmc.get_samples())
    for name, values in draws[0].items():
        assert torch.equal(values, draws[1][name]), name


@pytest.mark.parametrize("to_event", [False, True])
def test_a_masked_prior_is_flat(to_event):
    """The posterior of a mean under a masked prior is that of the data alone."""

    def model():
        prior = dist.Normal(50.0, 0.1).expand([1]).mask(torch.tensor([False]))
        if to_event:
            m = pyro.sample("m", prior.to_event(1))
        else:
            with pyro.plate("one", 1):
                m = pyro.sample("m", prior)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(m, 1.0), obs=Y)

    draws = run_together(model, aeb.SGLD(1e-2), 300, 50, steps_per_draw=10)
    assert float(draws["m"].mean()) == pytest.approx(float(Y.mean()), abs=0.08)


def test_a_masked_sparse_prior():
    def model():
        prior = aeb.SSGL(0.1, 10.0, 0.3, 1.0).expand([P]).mask(torch.arange(P) > 0)
        w = pyro.sample("w", prior.to_event(1))
        pyro.sample("y", dist.Normal(X @ w, 1.0).to_event(1), obs=Y)

    with raises_with("SSGL site 'w'", "poutine.mask", "observed sites only"):
        run_model(model)


def test_values_outside_the_support_may_be_masked_in_the_distribution():
    labels = torch.where(OK, 1.0, 7.0)

    def observe(w):
        with pyro.plate("data", N):
            pyro.sample("y", dist.Bernoulli(logits=X @ w).mask(OK), obs=labels)

    with pyro.validation_enabled(False):
        run_dense_model(observe)
