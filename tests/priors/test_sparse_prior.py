# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A prior whose settings follow from the data's size and units."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyro_aeb as aeb
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.priors import SparsePrior

N, P = 80, 5


def make_data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(N, P, generator=generator, dtype=torch.float64)
    y = X[:, 0] - 0.5 * X[:, 1] + torch.randn(N, generator=generator, dtype=torch.float64)
    return X, y


def make_model(prior):
    def model(X, y=None):
        beta, sigma = prior.sample("beta")
        with pyro.plate("data", len(X)):
            return pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

    return model


def log_density(X, y, values):
    prior = SparsePrior(X, y)
    model = poutine.condition(make_model(prior), values)
    return poutine.trace(model).get_trace(X, y).log_prob_sum()


def test_the_settings_follow_from_the_sizes_of_the_data():
    X, y = make_data()
    prior = SparsePrior(X, y)
    assert prior.v0 == pytest.approx(min(math.sqrt(0.05 / P), 0.5 / math.sqrt(N)))
    assert SparsePrior(torch.randn(20, 1000)).v0 == pytest.approx(math.sqrt(0.05 / 1000))
    trace = poutine.trace(make_model(prior)).get_trace(X, y)
    fn, sd = trace.nodes["beta"]["fn"].base_dist, X.std(0, correction=0)
    torch.testing.assert_close(fn.v0 * sd, torch.full_like(sd, prior.v0))
    torch.testing.assert_close(fn.v1 * sd**2, torch.full_like(sd, 10.0))
    delta, sigma2 = (trace.nodes[f"beta.{name}"]["fn"] for name in ("delta", "sigma2"))
    assert (delta.concentration1.item(), delta.concentration0.item()) == (2.0, P)
    assert sigma2.rate.item() == pytest.approx(0.05 * float(y.var(correction=0)))
    assert f"v0={prior.v0:.3g}" in repr(prior) and f"Beta(2, {P})" in repr(prior)
    assert SparsePrior(X, y, v0=0.3, v1=2.0).v0 == 0.3


@pytest.mark.parametrize(("of_x", "of_y"), [(1e3, 1.0), (1e-3, 1.0), (1.0, 1e3), (1e-2, 1e-3)])
def test_units_change_nothing(of_x, of_y):
    """The posterior in other units is the same law: log densities differ by a constant."""
    X, y = make_data()
    units = torch.ones(P, dtype=torch.float64)
    units[1:] = of_x
    differences = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        beta = 0.3 * torch.randn(P, generator=generator, dtype=torch.float64)
        sigma2, delta = torch.rand(2, generator=generator, dtype=torch.float64) + 0.1
        values = {"beta": beta, "beta.sigma2": sigma2, "beta.delta": delta / 2}
        there = {**values, "beta": beta * of_y / units, "beta.sigma2": sigma2 * of_y**2}
        first = log_density(X, y, values)
        differences.append(log_density(X * units, y * of_y, there) - first)
    for difference in differences:
        torch.testing.assert_close(difference, differences[0])


def test_a_constant_feature_has_its_size_as_unit_and_an_empty_one_is_left():
    X, y = make_data()
    X[:, 3], X[:, 4] = 7.0, 0.0
    X[:, 2] = 1e6 + X[:, 2]  # an sd that rounding does not hide
    prior = SparsePrior(X, y)
    scale = prior._scale
    assert scale[3] == 7.0 and scale[4] == 1.0
    assert SparsePrior(X, torch.ones(N)).sample("beta")[1] > 0.0
    torch.testing.assert_close(SparsePrior(1e3 + make_data()[0], y)._scale[0], scale[0])


def test_the_kernel_learns_its_sites():
    X, y = make_data()
    structure = inspect_model(make_model(SparsePrior(X, y)), (X, y), {}, adapt=True)
    assert [block.name for block in structure.sparse] == ["beta"]
    assert set(structure.latent_sites) == {"beta.sigma2", "beta.delta"}


def test_predictions_for_a_single_row_and_in_a_copy():
    X, y = make_data()
    prior = copy.deepcopy(SparsePrior(X, y))
    values = {"beta": torch.zeros(3, P, dtype=torch.float64)}
    values["beta.sigma2"] = values["beta.delta"] = torch.full((3,), 0.25, dtype=torch.float64)
    drawn = Predictive(make_model(prior), values)(X[:1])["y"]
    assert drawn.shape == (3, 1) and bool(torch.isfinite(drawn).all())


def test_without_targets_sigma_is_one():
    X, _ = make_data()
    trace = poutine.trace(SparsePrior(X).sample).get_trace("w")
    assert set(trace.stochastic_nodes) == {"w.delta", "w"}
    assert SparsePrior(X).sample("w")[1].item() == 1.0
    assert "sigma=1" in repr(SparsePrior(X))


@pytest.mark.parametrize(
    ("features", "y", "error", "message"),
    [
        ([[1.0]], None, TypeError, "found list, expected floating point tensors"),
        (torch.ones(3, 2, dtype=torch.long), None, TypeError, r"found torch.int64, expected"),
        (torch.ones(3), None, ValueError, r"shape \(3,\), expected \(data, features\)"),
        (torch.ones(3, 2), torch.ones(3, 1), ValueError, r"shape \(3, 1\), expected \(3,\)"),
        (torch.full((3, 2), torch.nan), None, ValueError, "NaN or infinite, expected none"),
    ],
)
def test_bad_data_are_errors(features, y, error, message):
    with pytest.raises(error, match=message):
        SparsePrior(features, y)


@pytest.mark.parametrize("option", [{"v0": 0.0}, {"v1": -1.0}])
def test_bad_widths_are_errors(option):
    with pytest.raises(ValueError, match="SparsePrior: v"):
        SparsePrior(torch.ones(3, 2), **option)


@pytest.mark.slow
def test_a_sparse_regression_without_a_number():
    X, y = make_data()
    X, y = X.float() * 1e3, y.float()
    kernel = aeb.AEBKernel(make_model(SparsePrior(X, y)), adaptation=aeb.Gibbs(), seed=0)
    mcmc = aeb.MCMC(kernel, 200, 100, disable_progbar=True)
    mcmc.run(X, y)
    probability = torch.as_tensor(aeb.inclusion(mcmc)["beta"].probability)
    assert probability[:2].min() > 0.9 and probability[2:].max() < 0.3
    assert mcmc.get_samples()["beta"].mean(0)[0] == pytest.approx(1e-3, rel=0.3)
