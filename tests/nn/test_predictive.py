# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior average of a finished run, against averages computed by hand from chosen draws."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import sparse_regression
from predicted_models import (
    INPUTS,
    LABELS,
    SLOPES,
    VALUES,
    VARIANCES,
    WEIGHTS,
    classifier,
    make_loader,
    regression,
)
from pyro_runs import X, Y, make_kernel, make_pyro_mcmc
from replayed_runs import replay_draws
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_aeb.nn import PosteriorPredictive

ROW = torch.arange(len(LABELS))


def binary_model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def class_probabilities() -> torch.Tensor:
    """Every draw's probabilities, shape (3, 5, 3)."""
    return (INPUTS @ WEIGHTS).softmax(-1)


# Classes


def test_probabilities_are_averaged_and_not_logits():
    probs = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS))(INPUTS)
    torch.testing.assert_close(probs, class_probabilities().mean(0))
    of_mean_logits = (INPUTS @ WEIGHTS).mean(0).softmax(-1)
    assert (probs - of_mean_logits).abs().max() > 0.05


def test_nll_is_that_of_the_average_and_not_the_average_of_the_nlls():
    evaluation = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS)).evaluate(INPUTS, LABELS)
    of_data = class_probabilities()[:, ROW, LABELS]
    assert evaluation.average["nll"] == pytest.approx(float(-of_data.mean(0).log().mean()))
    assert evaluation.average["nll"] < float(-of_data.log().mean()) - 0.05


def test_scores_of_classes():
    evaluation = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS)).evaluate(INPUTS, LABELS)
    assert evaluation.draws == 3
    for found, probs in [
        (evaluation.average, class_probabilities().mean(0)),
        (evaluation.last, class_probabilities()[-1]),
    ]:
        assert found.keys() == {"accuracy", "nll", "brier", "ece", "entropy"}
        right = probs.argmax(-1) == LABELS
        confidence = probs.amax(-1)
        bins = (confidence * 15).long()
        gap = confidence - right.float()
        by_bin = [gap[bins == i].sum().abs() for i in bins.unique()]
        expected = {
            "accuracy": right.float().mean(),
            "nll": -probs[ROW, LABELS].log().mean(),
            "brier": (probs - nn.functional.one_hot(LABELS)).square().sum(-1).mean(),
            "ece": sum(by_bin) / len(LABELS),
            "entropy": -(probs * probs.log()).sum(-1).mean(),
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(float(value), abs=1e-6), name


def test_the_table_has_a_line_for_every_score():
    evaluation = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS)).evaluate(INPUTS, LABELS)
    lines = str(evaluation).splitlines()
    assert lines[0].split() == ["average", "of", "3", "last", "draw"]
    assert [line.split()[0] for line in lines[1:]] == list(evaluation.average)
    assert lines[1].split()[1:] == [
        f"{evaluation.average['accuracy']:.4f}",
        f"{evaluation.last['accuracy']:.4f}",
    ]


def test_a_one_hot_categorical_scores_as_a_categorical():
    def one_hot(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.OneHotCategorical(logits=x @ w), obs=y)

    run = replay_draws(w=WEIGHTS)
    found = PosteriorPredictive(one_hot, run).evaluate(INPUTS, nn.functional.one_hot(LABELS) * 1.0)
    assert found == PosteriorPredictive(classifier, run).evaluate(INPUTS, LABELS)


def test_bernoulli_predicts_the_probability_of_1_and_scores_as_two_classes():
    draws, labels = WEIGHTS[..., 0], (LABELS > 0).float()
    of_one = torch.sigmoid(INPUTS @ draws.T).T.mean(0)
    predict = PosteriorPredictive(binary_model, replay_draws(w=draws))
    torch.testing.assert_close(predict(INPUTS), of_one)
    average = predict.evaluate(INPUTS, labels).average
    of_data = torch.where(labels == 1, of_one, 1 - of_one)
    assert average["nll"] == pytest.approx(float(-of_data.log().mean()))
    assert average["brier"] == pytest.approx(float(2 * (1 - of_data).square().mean()))
    assert average["accuracy"] == pytest.approx(float((of_data > 0.5).float().mean()))


# Numbers


def test_mean_and_sd_by_the_law_of_total_variance():
    found = PosteriorPredictive(regression, replay_draws(w=SLOPES, sigma2=VARIANCES))(INPUTS)
    means = torch.stack([INPUTS @ slope for slope in SLOPES])
    spread = (means[0] - means[1]).square() / 4  # of two equally likely means
    torch.testing.assert_close(found.mean, means.mean(0))
    torch.testing.assert_close(found.sd, (VARIANCES.mean() + spread).sqrt())


def test_rmse_is_of_the_mean_and_nll_of_the_mixture_with_every_draws_own_noise():
    run = replay_draws(w=SLOPES, sigma2=VARIANCES)
    found = PosteriorPredictive(regression, run).evaluate(INPUTS, VALUES)
    means = torch.stack([INPUTS @ slope for slope in SLOPES])
    variances = VARIANCES.unsqueeze(-1)
    densities = (-0.5 * (VALUES - means).square() / variances).exp()
    densities /= (2 * math.pi * variances).sqrt()
    rmse = (means.mean(0) - VALUES).square().mean().sqrt()
    assert found.average == pytest.approx(
        {"rmse": float(rmse), "nll": float(-densities.mean(0).log().mean())}
    )
    assert found.last["nll"] == pytest.approx(float(-densities[1].log().mean()))


def test_densities_that_underflow_are_averaged_in_the_log_domain():
    far = VALUES + 1e3
    run = replay_draws(w=SLOPES, sigma2=VARIANCES)
    found = PosteriorPredictive(regression, run).evaluate(INPUTS, far).average["nll"]
    means = torch.stack([INPUTS @ slope for slope in SLOPES]).double()
    variances = VARIANCES.unsqueeze(-1).double()
    logs = -0.5 * (far - means).square() / variances - 0.5 * (2 * math.pi * variances).log()
    expected = -(logs.logsumexp(0) - math.log(2)).mean()
    assert math.isfinite(found) and found == pytest.approx(float(expected), rel=1e-5)


def test_a_datum_of_several_numbers_counts_once_in_the_nll():
    def rows(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x * w, 1.0).to_event(1), obs=y)

    found = PosteriorPredictive(rows, replay_draws(w=SLOPES[:1])).evaluate(INPUTS, INPUTS)
    error = (INPUTS * SLOPES[0] - INPUTS).square().sum(-1)
    assert found.average["nll"] == pytest.approx(
        float((0.5 * error + math.log(2 * math.pi)).mean())
    )
    assert found.average["rmse"] == pytest.approx(float(error.sum() / INPUTS.numel()) ** 0.5)


def test_other_distributions_with_moments_predict_too():
    def counts(x, y=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Poisson(rate * x), obs=y)

    x = torch.tensor([1.0, 2.0, 4.0])
    found = PosteriorPredictive(counts, replay_draws(rate=torch.tensor([1.0, 3.0])))(x)
    torch.testing.assert_close(found.mean, 2.0 * x)
    torch.testing.assert_close(found.sd, (2.0 * x + x.square()).sqrt())


def test_deterministic_sites_and_factors_are_no_likelihoods():
    def with_terms(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("penalty", -w.abs().sum())
        mean = pyro.deterministic("mean", x @ w)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    found = PosteriorPredictive(with_terms, replay_draws(w=SLOPES)).evaluate(INPUTS, VALUES)
    assert found.average.keys() == {"rmse", "nll"}


# Data in batches, draws in chains


def test_batches_of_a_loader_count_by_their_size():
    predict = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS))
    whole = predict.evaluate(INPUTS, LABELS)
    batches = predict.evaluate(make_loader(INPUTS, LABELS))  # 2, 2 and 1 data
    assert batches.average == pytest.approx(whole.average)
    assert batches.last == pytest.approx(whole.last)
    torch.testing.assert_close(predict(make_loader(INPUTS)), predict(INPUTS))


def test_batches_may_be_mappings_tensors_or_pairs_with_labels():
    predict = PosteriorPredictive(classifier, replay_draws(w=WEIGHTS))
    named = [{"x": x, "y": y} for x, y in zip(INPUTS, LABELS, strict=True)]
    assert predict.evaluate(DataLoader(named, 2)) == predict.evaluate(make_loader(INPUTS, LABELS))
    assert torch.equal(predict(DataLoader(INPUTS, 2)), predict(make_loader(INPUTS, LABELS)))


def test_a_loader_is_passed_once_for_all_draws():
    seen = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    data = DataLoader(Watched(INPUTS, LABELS), 2)
    PosteriorPredictive(classifier, replay_draws(w=WEIGHTS)).evaluate(data)
    assert seen == [0, 1, 2, 3, 4]


def test_keyword_arguments_go_to_every_run_of_the_model():
    def tempered(x, y=None, temperature=1.0):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=x @ w / temperature), obs=y)

    predict = PosteriorPredictive(tempered, replay_draws(w=WEIGHTS))
    expected = (INPUTS @ WEIGHTS / 2.0).softmax(-1).mean(0)
    torch.testing.assert_close(predict(make_loader(INPUTS), temperature=2.0), expected)


def test_all_draws_of_all_chains_are_averaged():
    draws = torch.cat([WEIGHTS, WEIGHTS[:1] + 1.0])
    evaluation = PosteriorPredictive(classifier, replay_draws(chains=2, w=draws)).evaluate(
        INPUTS, LABELS
    )
    assert evaluation.draws == 4
    probs = (INPUTS @ draws).softmax(-1)[:, ROW, LABELS]
    assert evaluation.average["nll"] == pytest.approx(float(-probs.mean(0).log().mean()))
    assert evaluation.last["nll"] == pytest.approx(float(-probs[-1].log().mean()))


def test_a_run_of_the_kernel_predicts_with_what_it_learned():
    run = make_pyro_mcmc(make_kernel())
    run.run(X, Y, batch_size=5)
    draws = run.get_samples()
    found = PosteriorPredictive(sparse_regression, run)(X[:4])
    means = draws["beta"] @ X[:4].T
    torch.testing.assert_close(found.mean, means.mean(0))
    variance = draws["sigma2"].mean() + means.var(0, correction=0)
    torch.testing.assert_close(found.sd, variance.sqrt())


# Modules and random numbers


class DropoutNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2, 3, bias=False)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)))


def make_network_model(network):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        logits = torch.func.functional_call(network, {"head.weight": w}, (x,))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


def test_dropout_is_off_and_batch_norm_uses_its_averages():
    network = DropoutNetwork()
    network.norm.running_mean.copy_(torch.tensor([0.5, -1.0]))
    network.norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    draws = WEIGHTS.transpose(1, 2)
    probs = PosteriorPredictive(make_network_model(network), replay_draws(w=draws))(INPUTS)
    x = (INPUTS - network.norm.running_mean) / (network.norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(probs, (x @ WEIGHTS).softmax(-1).mean(0))


@pytest.mark.parametrize("fails", [False, True])
def test_flags_buffers_and_random_numbers_are_put_back(fails):
    network = DropoutNetwork()
    network.drop.eval()  # flags need not be alike
    flags = [module.training for module in network.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    predict = PosteriorPredictive(
        make_network_model(network), replay_draws(w=WEIGHTS.transpose(1, 2)), recalibrate=(INPUTS,)
    )
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):  # labels that are none
            predict.evaluate(INPUTS, LABELS + 7)
    else:
        predict.evaluate(make_loader(INPUTS, LABELS))
        predict(INPUTS)  # draws labels
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(b, buffers[name]) for name, b in network.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
