# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``check_adaptation`` and ``check_m_step`` pass right updates and catch wrong ones."""

import math

import pyro.distributions as dist
import pytest
import torch
from models import (
    SparseNetwork,
    dense_regression,
    linear_data,
    sparse_classification,
    sparse_layers,
    sparse_regression,
)

import pyro_aeb.adaptation.spike_and_slab as ssgl_rule
from pyro_aeb.testing import check_adaptation, check_m_step

X, Y = linear_data(6, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


MODELS = {
    "regression": (sparse_regression, (X, Y)),
    "regression on minibatches": (sparse_regression, (X, Y, 2)),
    "classification": (sparse_classification, (X, Y, 2)),
    "layers": (sparse_layers, (X, Y)),
    "a module": (SparseNetwork, (X, Y)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_updates_of_the_package_pass(name):
    model, args = MODELS[name]
    model = model() if isinstance(model, type) else model
    report = check_adaptation(model, *args)
    assert [f.check for f in report.outcomes] == ["E-step", "M-steps", "sweeps", "chains"]


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    check_adaptation(sparse_regression, X.float(), Y.float())


def test_a_model_without_ssgl_sites_is_refused():
    with pytest.raises(ValueError, match=r"are \['w'\], none of which is an SSGL site"):
        check_adaptation(dense_regression, X, Y)


# -- wrong updates: equations replaced by others, some of which have been published


def without_the_two(absolute, square, count, nu, nu_lambda):
    """Compute (6) with A = N + p + nu, as on the slides for regression."""
    a, c = count + nu, square + nu_lambda
    return (absolute + (absolute**2 + 4 * a * c).sqrt()) / (2 * a)


def variance_for_scale(absolute, square, count, nu, nu_lambda):
    return (square + nu_lambda) / (count + nu + 2.0)


def mean_for_mode(total, ones, of):
    """Return the mean of the Beta posterior in place of its mode."""
    return (total + ones + 1.0) / (of + 2.0)


def without_the_prior_odds(u, prior, *components):
    return ORIGINAL_LOGIT(u, torch.zeros_like(prior), *components)


def without_the_weight(old, new, weight):
    return new


def in_place(old, new, weight):
    return old.lerp_(new, weight)


ORIGINAL_LOGIT = ssgl_rule.inclusion_logit
WRONG = {
    "A without + 2": ("scale_update", without_the_two, "M-step of 'sigma2'"),
    "no absolute values": ("scale_update", variance_for_scale, "M-step of 'sigma2'"),
    "mean for mode": ("beta_mode", mean_for_mode, "M-step of 'delta'"),
    "no prior odds": ("inclusion_logit", without_the_prior_odds, "E-step of rho"),
    "no average": ("stochastic_approximation", without_the_weight, "weight 0.25"),
    "in place": ("stochastic_approximation", in_place, "E-step|inputs of a sweep"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_updates_are_caught(name, monkeypatch):
    function, wrong, message = WRONG[name]
    monkeypatch.setattr(ssgl_rule, function, wrong)
    with pytest.raises(AssertionError, match=message):
        check_adaptation(sparse_regression, X, Y, 2)


def test_residuals_of_the_batch_alone_are_caught(monkeypatch):
    original = ssgl_rule.SpikeAndSlabRule.update

    def not_scaled(self, latents, beta, residuals, weight):
        smaller = {n: r._replace(square=r.square / 3) for n, r in residuals.items()}
        return original(self, latents, beta, smaller, weight)

    monkeypatch.setattr(ssgl_rule.SpikeAndSlabRule, "update", not_scaled)
    with pytest.raises(AssertionError, match="M-step of 'sigma2'"):
        check_adaptation(sparse_regression, X, Y, 2)


# -- a user's own update


Z = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)


def gamma_normal(values):
    """Return Q of weights with precision alpha ~ Gamma(2, 3)."""
    alpha = values["alpha"]
    prior = dist.Gamma(2.0, 3.0).log_prob(alpha)
    return prior + dist.Normal(0.0, alpha.rsqrt()).log_prob(Z).sum()


MODE = (2.0 + 4 / 2 - 1) / (3.0 + float(Z.square().sum()) / 2)  # of Gamma(2 + 4/2, 3 + sum z^2 / 2)


def test_a_conjugate_update_passes():
    outcome = check_m_step(gamma_normal, {"alpha": torch.tensor(MODE)})
    assert "alpha at the maximum of Q" in outcome.result


def test_how_far_off_the_maximum_is_is_told():
    # The Newton step from 1.001 times the mode is -0.001 times it, up to its square.
    with pytest.raises(AssertionError, match=r"relative 0\.00(1|0999|1001)"):
        check_m_step(gamma_normal, {"alpha": torch.tensor(1.001 * MODE)})
    check_m_step(gamma_normal, {"alpha": torch.tensor(1.001 * MODE)}, tolerance=0.01)


def test_a_minimum_is_no_maximum():
    at = {"x": torch.tensor(1.0)}
    check_m_step(lambda values: -((values["x"] - 1) ** 2), at)
    with pytest.raises(AssertionError, match="relative inf away"):
        check_m_step(lambda values: (values["x"] - 1) ** 2, at)


def test_a_latent_that_q_does_not_know_is_no_maximum():
    with pytest.raises(AssertionError, match="relative inf away"):
        check_m_step(lambda values: torch.tensor(0.0), {"x": torch.tensor(1.0)})


def test_a_vector_is_checked_in_full():
    # A maximum along every axis that is none along the diagonal: x^2 + y^2 - 4 x y, negated.
    def saddle(values):
        x, y = values["x"]
        return -(x**2) - y**2 + 4 * x * y

    with pytest.raises(AssertionError, match="relative inf away"):
        check_m_step(saddle, {"x": torch.zeros(2)})


def test_a_maximum_at_a_bound():
    def rising(values):
        return 2.0 * values["delta"]

    bounds = {"delta": (0.0, 1.0)}
    check_m_step(rising, {"delta": torch.tensor(1.0)}, bounds)
    for value in (0.0, 0.5):
        with pytest.raises(AssertionError):
            check_m_step(rising, {"delta": torch.tensor(value)}, bounds)


def test_every_value_of_a_tensor_counts():
    target = torch.tensor([1.0, 2.0, 3.0])

    def q(values):
        return -(values["x"] - target).square().sum()

    check_m_step(q, {"x": target})
    with pytest.raises(AssertionError, match=r"a tensor of \(3,\)"):
        check_m_step(q, {"x": target + torch.tensor([0.0, 0.0, 1e-6])})


def test_nan_is_no_maximum():
    with pytest.raises(AssertionError):
        check_m_step(lambda values: values["x"].log(), {"x": torch.tensor(math.nan)})
