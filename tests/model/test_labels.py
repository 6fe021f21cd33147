# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Labels may be integers or booleans: the run is that of the same numbers as floats."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_aeb as aeb

N = 30
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=generator)
LABELS = X[:, 0] > 0.0
COUNTS = torch.randint(5, (N,), generator=generator)


def bernoulli(logits):
    return dist.Bernoulli(logits=logits)


def relaxed(logits):
    return dist.ContinuousBernoulli(logits=logits)


def masked(logits):
    return dist.Bernoulli(logits=logits).mask(X[:, 1] > 0.0)


def weighted_mixture(logits):
    both = torch.stack([logits, torch.zeros(N)], -1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Bernoulli(logits=both))


def binomial(logits):
    return dist.Binomial(5, logits=logits)


def normal(logits):
    return dist.Normal(logits, 1.0)


def make(likelihood):
    net = aeb.nn.bayesianize(torch.nn.Linear(3, 1), sparse=[], delta=0.5, sigma2=1.0)

    def model(x, y=None):
        logits = net(x).squeeze(-1)
        with pyro.plate("data", N):
            return pyro.sample("y", likelihood(logits), obs=y)

    return model


def run(model, y, transition=None, **options):
    transition = transition or aeb.SGLD(1e-3)
    kernel = aeb.AEBKernel(model, transition, seed=0)
    mcmc = aeb.MCMC(kernel, 10, 0, disable_progbar=True, **options)
    mcmc.run(X, y)
    return mcmc


@pytest.mark.parametrize("likelihood", [bernoulli, relaxed, masked, weighted_mixture, normal])
@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_draws_are_those_of_floats(likelihood, kind):
    model = make(likelihood)
    exact = run(model, LABELS.float()).get_samples()["weight"]
    assert torch.equal(run(model, LABELS.to(kind)).get_samples()["weight"], exact)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
def test_counts_of_a_binomial_are_those_of_floats(kind):
    model = make(binomial)
    exact = run(model, COUNTS.float()).get_samples()["weight"]
    assert torch.equal(run(model, COUNTS.to(kind)).get_samples()["weight"], exact)


def test_chains_that_step_together_take_them():
    model = make(bernoulli)
    options = {"num_chains": 2, "chain_method": "vectorized"}
    exact = run(model, LABELS.float(), **options).get_samples()["weight"]
    torch.testing.assert_close(run(model, LABELS, **options).get_samples()["weight"], exact)


def test_two_observed_sites_of_them_are_both_data():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)
            pyro.sample("z", dist.Bernoulli(logits=-(x @ w)), obs=~y)

    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-3), seed=0)
    kernel.setup(0, X, LABELS)
    assert kernel.chain.structure.observed == ("y", "z")


@pytest.mark.parametrize("kind", [torch.int64, torch.bool], ids=str)
def test_scores_of_predictions_are_those_of_floats(kind):
    model = make(bernoulli)
    predict = aeb.nn.PosteriorPredictive(model, run(model, LABELS.float()))
    exact = predict.evaluate(X, LABELS.float())
    found = predict.evaluate(X, LABELS.to(kind))
    assert found.average == exact.average and 0.0 < found.average["nll"] < 2.0


def test_labels_that_are_none_are_refused():
    labels = LABELS.long()
    labels[3] = 2
    with pytest.raises(aeb.ModelError, match="'y' ~ Bernoulli has values outside its support.*2"):
        run(make(bernoulli), labels)
