# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""``check_model`` passes models with an unbiased gradient and catches others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    DenseNetwork,
    SparseNetwork,
    dense_regression,
    eight_schools,
    linear_data,
    scale_and_simplex,
    sparse_classification,
    sparse_layers,
    sparse_regression,
)
from torch import nn

import pyro_aeb.posterior.likelihood
import pyro_aeb.posterior.posterior
from pyro_aeb import SSGL
from pyro_aeb.testing import check_gradient, check_model, check_unbiased_gradient, minibatches
from pyro_aeb.testing import objective as q

X, Y = linear_data(6, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


MODELS = {
    "sparse regression": (sparse_regression, (X, Y, 2), 4),
    "sparse classification": (sparse_classification, (X, Y, 4), 4),
    "two sparse layers": (sparse_layers, (X, Y), 2),
    "a sparse module": (SparseNetwork, (X, Y), 2),
    "dense regression": (dense_regression, (X, Y, 3), 2),
    "eight schools": (eight_schools, (SCHOOLS_SIGMA.double(), SCHOOLS_Y.double()), 1),
    "constrained sites": (scale_and_simplex, (Y,), 1),
    "a module with BatchNorm": (DenseNetwork, (X, Y), 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_right_models_pass(name):
    model, args, checks = MODELS[name]
    model = model() if isinstance(model, type) else model
    report = check_model(model, *args)
    assert len(report.outcomes) == checks
    report["gradient, own prior"]  # is among them


def test_keyword_arguments_and_single_precision():
    torch.set_default_dtype(torch.float32)
    report = check_model(sparse_regression, X.float(), y=Y.float(), batch_size=2)
    assert "15 minibatches" in report["unbiased gradient"].result
    assert "torch.float32" in report["gradient"].result


# -- biased gradients


def factor_without_scale(x, y, batch=None):
    """A term for the data after the plate, which is not scaled by N/n."""
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(x[i] @ w, 0.5), obs=y[i])
    pyro.factor("more", dist.Normal(x[i] @ w, 2.0).log_prob(y[i]).sum())


def batch_norm(x, y, batch=None):
    """Predictions for a datum depend on the others in its batch."""
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch) as i:
        z = nn.functional.batch_norm(x[i], None, None, training=True)
        pyro.sample("y", dist.Normal(z @ w, 0.5), obs=y[i])


def dropout(x, y, batch=None):
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=batch) as i:
        mean = nn.functional.dropout(x[i], 0.5) @ w
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y[i])


BIASED = [factor_without_scale, batch_norm, dropout]


@pytest.mark.parametrize("model", BIASED)
def test_a_biased_gradient_is_caught(model):
    with pytest.raises(AssertionError, match="the stochastic gradient is biased"):
        check_unbiased_gradient(model, (X, Y, 2))


# -- mistakes in the package


def test_a_wrong_closed_form_of_the_prior_is_caught(monkeypatch):
    original = pyro_aeb.posterior.posterior.Posterior.add_prior

    def without_sigma(self, gradient, position, latents):
        """Add penalties that are not divided by sigma."""
        if latents is not None:
            ssgl = latents.ssgl._replace(sigma=torch.ones_like(latents.ssgl.sigma))
            latents = latents._replace(ssgl=ssgl)
        original(self, gradient, position, latents)

    monkeypatch.setattr(pyro_aeb.posterior.posterior.Posterior, "add_prior", without_sigma)
    with pytest.raises(AssertionError, match="gradient of site 'beta'"):
        check_model(sparse_regression, X, Y, 2)


def test_a_likelihood_without_its_scale_is_caught(monkeypatch):
    original = pyro_aeb.posterior.likelihood.Likelihood.evaluate

    def of_the_batch_alone(self, *args):
        found = original(self, *args)
        return found._replace(gradient=found.gradient / 3.0)

    monkeypatch.setattr(pyro_aeb.posterior.likelihood.Likelihood, "evaluate", of_the_batch_alone)
    with pytest.raises(AssertionError, match="gradient of site 'w'"):
        check_model(dense_regression, X, Y, 2)


# -- the parts


def test_all_minibatches_of_two_plates():
    found = list(minibatches({"a": (3, 2), "b": (2, 1), "c": (2, 2)}))
    pairs = [(tuple(b["a"].tolist()), tuple(b["b"].tolist())) for b in found]
    assert pairs == [(a, b) for a in ((0, 1), (0, 2), (1, 2)) for b in ((0,), (1,))]
    assert all(batch["c"].tolist() == [0, 1] for batch in found)


def test_all_draws_with_replacement():
    found = [tuple(b["a"].tolist()) for b in minibatches({"a": (3, 2)}, "replacement")]
    assert sorted(found) == [(i, j) for i in range(3) for j in range(3)]


def test_too_many_minibatches_are_refused():
    with pytest.raises(ValueError, match="have 155117520 minibatches, expected at most 20000"):
        next(minibatches({"a": (30, 15)}))


@pytest.mark.parametrize("order", ["permutation", "replacement"])
def test_both_orders_are_unbiased(order):
    outcome = check_unbiased_gradient(sparse_regression, (X, Y, 2), adapt=True, order=order)
    assert f"{15 if order == 'permutation' else 36} minibatches" in outcome.result


def test_a_model_without_minibatches_is_refused():
    with pytest.raises(ValueError, match="take all of their data, expected one that subsamples"):
        check_unbiased_gradient(dense_regression, (X, Y))


def test_the_objective_is_the_expected_log_joint_density():
    def model(y):
        beta = pyro.sample("beta", SSGL(0.5, 2.0, 0.3, 1.5))
        pyro.sample("y", dist.Normal(beta, 1.0), obs=y)

    beta, y, rho = torch.tensor(0.4), torch.tensor(1.0), torch.tensor(0.2)
    found = q(model, (y,), {}, {"beta": beta}, {"beta": rho})
    laplace = dist.Laplace(0.0, 0.75).log_prob(beta) + torch.tensor(0.7).log()
    gaussian = dist.Normal(0.0, 1.5 * 2.0**0.5).log_prob(beta) + torch.tensor(0.3).log()
    expected = 0.8 * laplace + 0.2 * gaussian + dist.Normal(beta, 1.0).log_prob(y)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0)
    # Without rho it has the density that SSGL itself gives.
    own = SSGL(0.5, 2.0, 0.3, 1.5).log_prob(beta) + dist.Normal(beta, 1.0).log_prob(y)
    torch.testing.assert_close(q(model, (y,), {}, {"beta": beta}, {}), own, rtol=1e-14, atol=0.0)


def test_nothing_changes():
    network, state = DenseNetwork(), torch.get_rng_state()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    check_gradient(network, (X, Y), {}, adapt=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, before[name]) for name, b in network.named_buffers())
    assert pyro.plate("data", 6, subsample_size=2).subsample_size == 2
