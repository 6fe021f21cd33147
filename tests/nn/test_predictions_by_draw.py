# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Predictions of every draw, and the parts of their uncertainty, against values by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from predicted_models import (
    INPUTS,
    SLOPES,
    VARIANCES,
    WEIGHTS,
    classifier,
    make_loader,
    regression,
)
from replayed_runs import replay_draws
from scipy.optimize import brentq
from scipy.stats import norm

from pyro_aeb.nn import PosteriorPredictive

LEVELS = [0.05, 0.5, 0.9]
DATA = [(INPUTS,), (make_loader(INPUTS),)]


@pytest.mark.parametrize("data", DATA)
def test_classes(data):
    predict = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS))
    found = predict.by_draw(*data)
    probs = (INPUTS @ WEIGHTS).softmax(-1)
    torch.testing.assert_close(found.mean, probs)
    assert found.sd is None
    total, aleatoric, epistemic = found.uncertainty()
    mean = probs.mean(0)
    torch.testing.assert_close(total, -(mean * mean.log()).sum(-1))
    torch.testing.assert_close(aleatoric, -(probs * probs.log()).sum(-1).mean(0))
    kl = (probs * (probs / mean).log()).sum(-1).mean(0)  # mutual information, as it is defined
    torch.testing.assert_close(epistemic, kl, rtol=1e-4, atol=1e-6)
    expected = torch.quantile(probs, torch.tensor(LEVELS), dim=0)
    torch.testing.assert_close(found.quantiles(LEVELS), expected)
    torch.testing.assert_close(predict(*data), found.mean.mean(0))


@pytest.mark.parametrize("data", DATA)
def test_numbers(data):
    predict = PosteriorPredictive(regression, replay_draws(w=SLOPES, sigma2=VARIANCES))
    found = predict.by_draw(*data)
    means, sds = SLOPES @ INPUTS.T, VARIANCES.sqrt()[:, None].expand(2, 5)
    torch.testing.assert_close(found.mean, means)
    torch.testing.assert_close(found.sd, sds)
    total, aleatoric, epistemic = found.uncertainty()
    torch.testing.assert_close(aleatoric, torch.full((5,), 1.25))
    torch.testing.assert_close(epistemic, ((means[0] - means[1]) / 2).square())
    torch.testing.assert_close(total, predict(INPUTS).sd.square())
    torch.testing.assert_close(total, aleatoric + epistemic)
    quantiles = found.quantiles(LEVELS)
    for i, level in enumerate(LEVELS):
        for j in range(5):

            def below(y, j=j, level=level):
                return norm.cdf(y, means[:, j], sds[:, j]).mean() - level

            assert float(quantiles[i, j]) == pytest.approx(brentq(below, -50, 50), abs=1e-4)
    torch.testing.assert_close(found.quantiles(0.5), quantiles[1])


def test_binary():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    found = PosteriorPredictive(model, replay_draws(w=SLOPES)).by_draw(INPUTS).uncertainty()
    probs = (SLOPES @ INPUTS.T).sigmoid()

    def entropy(p):
        return -(p * p.log() + (1 - p) * (1 - p).log())

    torch.testing.assert_close(found.total, entropy(probs.mean(0)))
    torch.testing.assert_close(found.aleatoric, entropy(probs).mean(0))
    torch.testing.assert_close(found.epistemic, found.total - found.aleatoric)


def test_quantiles_of_a_likelihood_that_has_none_are_those_of_samples():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        fn = dist.StudentT(5.0, (x @ w)[:, None].expand(-1, 2), 1.0)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", fn.to_event(1), obs=y)

    torch.manual_seed(0)
    found = PosteriorPredictive(model, replay_draws(w=SLOPES[:1])).by_draw(INPUTS)
    low, high = found.quantiles([0.05, 0.95])
    assert low.shape == (5, 2)
    expected = 2.015  # of Student's t with 5 degrees of freedom
    centre = (SLOPES[0] @ INPUTS.T)[:, None].expand(5, 2)
    torch.testing.assert_close(high - centre, torch.full((5, 2), expected), atol=0.3, rtol=0.0)
    torch.testing.assert_close(low - centre, torch.full((5, 2), -expected), atol=0.3, rtol=0.0)


def test_what_does_not_fit():
    predict = PosteriorPredictive(classifier, data=(INPUTS,))
    with pytest.raises(TypeError, match="keeps no draws"):
        predict.by_draw(INPUTS)
    found = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS)).by_draw(INPUTS)
    with pytest.raises(ValueError, match="probs is 1.5"):
        found.quantiles(1.5)
