# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Masked likelihoods: predictions of all data, scores of those that no mask leaves out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from predicted_models import INPUTS, LABELS, SLOPES, VALUES, WEIGHTS
from pyro import poutine
from pyro_runs import make_kernel, make_pyro_mcmc
from replayed_runs import replay_draws
from torch.utils.data import DataLoader, TensorDataset

from pyro_aeb.nn import PosteriorPredictive

KEPT = INPUTS[:, 0] > INPUTS[:, 0].median()


def regression(x, y=None, mask=None, by_handler=True):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mask = x[:, 0] > INPUTS[:, 0].median() if mask is None else mask
    noise = dist.Normal(x @ w, 1.0)
    with pyro.plate("data", len(x)):
        if not by_handler:
            return pyro.sample("y", noise.mask(mask), obs=y)
        with poutine.mask(mask=mask):
            return pyro.sample("y", noise, obs=y)


def unmasked(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.parametrize("by_handler", [True, False])
def test_all_are_predicted_and_the_unmasked_scored(by_handler):
    run = replay_draws(w=SLOPES)
    predict, plain = PosteriorPredictive(regression, run), PosteriorPredictive(unmasked, run)
    holes = torch.where(KEPT, VALUES, torch.nan)
    expected = plain.evaluate(INPUTS[KEPT], VALUES[KEPT])
    for y in (None, VALUES, holes):
        found = predict(INPUTS, y, by_handler=by_handler)
        torch.testing.assert_close(found.mean, plain(INPUTS).mean)
        torch.testing.assert_close(found.sd, plain(INPUTS).sd)
    for y in (VALUES, holes):
        for data in ((INPUTS, y), (DataLoader(TensorDataset(INPUTS, y), 2),)):
            found = predict.evaluate(*data, by_handler=by_handler)
            assert found.average == pytest.approx(expected.average, abs=1e-6)
            assert found.last == pytest.approx(expected.last, abs=1e-6)


@pytest.mark.parametrize("outer", [True, False])
def test_tokens_of_sentences(outer):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        fn = dist.Categorical(logits=(x @ w)[:, None].expand(-1, 2, 3))
        mask = torch.stack([KEPT, torch.ones_like(KEPT)], -1)
        fn = fn.mask(mask).to_event(1)
        with pyro.plate("data", len(x)), poutine.mask(mask=KEPT if outer else True):
            return pyro.sample("y", fn, obs=y)

    labels = torch.stack([LABELS, (LABELS + 1) % 3], -1)
    probs = (INPUTS @ WEIGHTS).softmax(-1)
    predict = PosteriorPredictive(model, replay_draws(w=WEIGHTS))
    torch.testing.assert_close(predict(INPUTS), probs.mean(0)[:, None].expand(-1, 2, 3))
    kept = torch.stack([KEPT, KEPT if outer else torch.ones_like(KEPT)], -1)
    right = probs.mean(0).argmax(-1)[:, None] == labels
    found = predict.evaluate(INPUTS, labels).average
    assert found["accuracy"] == pytest.approx(float(right[kept].float().mean()))
    row = torch.arange(len(LABELS))[:, None]
    of_data = probs[:, row, labels].log()  # (draws, data, 2)
    density = (of_data * kept).sum(-1).exp().mean(0).log()
    expected = -density[kept.any(-1)].mean()
    assert found["nll"] == pytest.approx(float(expected), abs=1e-5)


def missing_labels(x, y=None):
    """Only batches with a missing label have a mask."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    fn = dist.Normal(x @ w, 1.0)
    if y is not None and y.isnan().any():
        fn = fn.mask(~y.isnan())
    with pyro.plate("data", 5, subsample=x):
        return pyro.sample("y", fn, obs=y)


def test_missing_labels_are_left_out_of_scores():
    holes = torch.where(torch.arange(5) == 3, torch.nan, VALUES)
    run, kept = replay_draws(w=SLOPES), ~holes.isnan()
    expected = PosteriorPredictive(unmasked, run).evaluate(INPUTS[kept], VALUES[kept])
    for size in (2, 5):
        loader = DataLoader(TensorDataset(INPUTS, holes), size)
        found = PosteriorPredictive(missing_labels, run).evaluate(loader)
        assert found.average == pytest.approx(expected.average, abs=1e-6)
    everything = PosteriorPredictive(missing_labels, run)(INPUTS).mean
    torch.testing.assert_close(everything, (INPUTS @ SLOPES.T).mean(1))


def test_the_hook_predicts_data_with_missing_labels():
    holes = torch.where(torch.arange(5) == 3, torch.nan, VALUES)
    along = PosteriorPredictive(missing_labels, data=(INPUTS, holes))
    kernel = make_kernel(missing_labels, 1e-3, adaptation=None)
    run = make_pyro_mcmc(kernel, hook_fn=along.hook)
    run.run(INPUTS, VALUES)
    kept = PosteriorPredictive(missing_labels, run).evaluate(INPUTS, holes)
    assert along.evaluate().average == pytest.approx(kept.average, abs=1e-6)


def test_outputs_of_a_multivariate_normal():
    def model(x, y=None, mask=True):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        fn = dist.MultivariateNormal((x @ w)[:, None].expand(-1, 2), torch.eye(2))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            return pyro.sample("y", fn, obs=y)

    predict = PosteriorPredictive(model, replay_draws(w=SLOPES))
    y = torch.stack([VALUES, -VALUES], -1)
    found = predict.evaluate(INPUTS, y, mask=KEPT)
    expected = predict.evaluate(INPUTS[KEPT], y[KEPT])
    assert found.average == pytest.approx(expected.average, abs=1e-6)
    assert predict(INPUTS, mask=KEPT).mean.shape == (5, 2)


def test_masks_that_are_one_bool():
    run = replay_draws(w=SLOPES)
    all_kept = PosteriorPredictive(regression, run).evaluate(INPUTS, VALUES, mask=True)
    assert all_kept == PosteriorPredictive(unmasked, run).evaluate(INPUTS, VALUES)
    with pytest.raises(ValueError, match="masks all data"):
        PosteriorPredictive(regression, run).evaluate(INPUTS, VALUES, mask=False)
