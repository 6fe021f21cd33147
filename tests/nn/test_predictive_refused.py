# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Errors for runs, models and data that cannot be predicted with."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
from models import sparse_regression
from predicted_models import (
    INPUTS,
    LABELS,
    SLOPES,
    VALUES,
    WEIGHTS,
    classifier,
    make_loader,
    regression,
)
from pyro.infer.mcmc.api import StreamingMCMC
from pyro_runs import X, Y, make_kernel, make_pyro_mcmc
from replayed_runs import replay_draws
from torch.utils.data import DataLoader, TensorDataset

from pyro_aeb import ModelError
from pyro_aeb.nn import PosteriorPredictive


def test_draws_without_the_weights_are_refused_with_two_ways_out():
    run = make_pyro_mcmc(make_kernel(save=["sigma2", "delta"]))
    run.run(X, Y)
    predict = PosteriorPredictive(sparse_regression, run)
    for ask in (lambda: predict(X), lambda: predict.evaluate(X, Y)):
        with pytest.raises(ModelError, match=r"not the latent sites \['beta'\]") as error:
            ask()
        assert "save=[...]" in str(error.value) and "hook_fn=predict.hook" in str(error.value)
    run = make_pyro_mcmc(make_kernel(save=[]))
    run.run(X, Y)
    with pytest.raises(ModelError, match="hold no sites.*hook_fn=predict.hook"):
        PosteriorPredictive(sparse_regression, run)


def test_draws_that_lack_sites_are_refused_where_the_likelihood_is_not_known_either():
    with pytest.raises(ModelError, match=r"sites \['sigma2', 'y'\] have no values"):
        PosteriorPredictive(regression, replay_draws(w=SLOPES))(INPUTS)
    with pytest.raises(ModelError, match=r"not the latent sites \['sigma2'\]"):
        PosteriorPredictive(regression, replay_draws(w=SLOPES), site="y")(INPUTS)


def two_sites(x, y=None, label=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("label", dist.Bernoulli(logits=x @ w), obs=label)
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_of_several_observed_sites_one_must_be_chosen():
    run, labels = replay_draws(w=SLOPES), (LABELS > 0).float()
    with pytest.raises(ModelError, match=r"2 observed sites \['label', 'y'\].*site=name"):
        PosteriorPredictive(two_sites, run).evaluate(INPUTS, VALUES, labels)
    chosen = PosteriorPredictive(two_sites, run, site="y").evaluate(INPUTS, VALUES, labels)
    assert chosen.average.keys() == {"rmse", "nll"}
    with pytest.raises(ModelError, match=r"site 'z' is not one.*\['label', 'y'\]"):
        PosteriorPredictive(two_sites, run, site="z").evaluate(INPUTS, VALUES, labels)


def test_scores_need_the_data():
    predict = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS))
    with pytest.raises(ValueError, match=r"observed no data.*evaluate\(x, y\)"):
        predict.evaluate(INPUTS)


def test_a_plate_that_takes_a_subsample_is_refused():
    run = make_pyro_mcmc(make_kernel())
    run.run(X, Y, batch_size=5)
    with pytest.raises(ModelError, match="plate 'data' would take 5 of 20 data at random"):
        PosteriorPredictive(sparse_regression, run).evaluate(X, Y, batch_size=5)


def test_a_likelihood_without_moments_is_refused():
    def odd(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        noise = dist.TransformedDistribution(
            dist.Normal(x @ w, 1.0), [dist.transforms.TanhTransform()]
        )
        with pyro.plate("data", len(x)):
            return pyro.sample("y", noise, obs=y)

    with pytest.raises(ModelError, match="TransformedDistribution, which has no mean"):
        PosteriorPredictive(odd, replay_draws(w=SLOPES))(INPUTS)


def test_an_empty_loader_is_refused():
    predict = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS))
    with pytest.raises(ValueError, match="gave no batch"):
        predict.evaluate(DataLoader(TensorDataset(INPUTS, LABELS), 8, drop_last=True))
    with pytest.raises(TypeError, match="a DataLoader among 2 arguments"):
        predict.evaluate(make_loader(INPUTS), LABELS)


def test_a_run_without_draws_is_refused():
    with pytest.raises(TypeError, match="StreamingMCMC keeps no draws.*hook_fn=predict.hook"):
        PosteriorPredictive(sparse_regression, StreamingMCMC(make_kernel(), 5))
    with pytest.raises(RuntimeError, match="holds no draws: call its run"):
        PosteriorPredictive(sparse_regression, make_pyro_mcmc())
    with pytest.raises(TypeError, match="expected a pyro.infer.MCMC object"):
        PosteriorPredictive(classifier, {"w": WEIGHTS})
    with pytest.raises(TypeError, match="either a finished run.*or the data"):
        PosteriorPredictive(classifier)
