# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Errors for bad models: raised at once, they say what was found, what was expected and what to do.
Errors for links between sites are tested in test_links_refused.py.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import N, P, dense_regression, sparse_prior, sparse_regression
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value
from refusals import ADAPTATION, X, Y, raises_with, run_dense_model, run_model

from pyro_aeb import SGLD, SSGL, AEBKernel, NonFiniteError

# Parameters of SSGL; MCMC turns validation off, which is no reason to be silent


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("parameter", ["v0", "v1", "sigma"])
def test_scales_that_are_not_positive(parameter, value):
    values = {"v0": 0.1, "v1": 10.0, "delta": 0.5, "sigma": 1.0}

    def model(bad):
        prior = SSGL(**{**values, parameter: bad}).expand([P]).to_event(1)
        pyro.sample("y", dist.Normal(X @ pyro.sample("beta", prior), 1.0).to_event(1), obs=Y)

    for bad in (value, torch.tensor(value), torch.tensor([1.0, value, 1.0])):
        for adaptation in (ADAPTATION, None):
            with pytest.raises(ValueError, match=rf"{parameter}.*positive.*{value:g}"):
                run_model(lambda bad=bad: model(bad), adaptation=adaptation)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_delta_that_is_no_probability(value):
    def model():
        prior = SSGL(0.1, 10.0, value).expand([P]).to_event(1)
        pyro.sample("y", dist.Normal(X @ pyro.sample("beta", prior), 1.0).to_event(1), obs=Y)

    for adaptation in (ADAPTATION, None):
        with pytest.raises(ValueError, match=rf"delta.*in \[0, 1\].*{value:g}"):
            run_model(model, adaptation=adaptation)


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_a_delta_of_zero_or_one_is_a_probability(delta):
    def model():
        beta = pyro.sample("beta", SSGL(0.1, 10.0, delta).expand([P]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ beta, 1.0), obs=Y)

    for adaptation in (ADAPTATION, None):
        draws = run_model(model, adaptation=adaptation).get_samples()["beta"]
        assert torch.isfinite(draws).all()


def test_a_beta_prior_without_a_mode():
    def model():
        delta = pyro.sample("delta", dist.Beta(0.5, 0.5))
        pyro.sample("beta", SSGL(0.1, 10.0, delta).expand([1]).to_event(1))

    with raises_with("site 'delta' ~ Beta(0.5, 0.5) with 1", "mode", "at least 1"):
        run_model(model)


# Sites and plates


def test_a_discrete_latent():
    def observe(w):
        z = pyro.sample("z", dist.Poisson(0.5))
        pyro.sample("y", dist.Normal(w.sum() + z, 1.0), obs=Y[0])

    with raises_with(
        "'z' ~ Poisson is a discrete latent", "sum it out", "MixtureSameFamily", "obs="
    ):
        run_dense_model(observe)


def test_a_latent_for_every_datum_of_a_batch():
    def observe(w):
        with pyro.plate("data", N, subsample_size=5) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(X[i] @ w + z, 1.0), obs=Y[i])

    with raises_with("latent site 'z'", "plate 'data'", "(5 of 20)", "move it out", "sum it out"):
        run_dense_model(observe)


def test_a_subsample_without_observations():
    def observe(w):
        with pyro.plate("data", N, subsample_size=5) as i:
            batch = Y[i]
        pyro.sample("y", dist.Normal(w.sum(), 1.0).expand([5]).to_event(1), obs=batch)

    with raises_with("plate 'data' is subsampled (5 of 20)", "no observed site", "N/n", "inside"):
        run_dense_model(observe)


@pytest.mark.parametrize("scale, found", [(2.0, "8"), (0.25, "1"), (torch.tensor(3.0), "12")])
def test_a_scale_that_is_not_the_plates(scale, found):
    def observe(w):
        with pyro.plate("data", N, subsample_size=5) as i, poutine.scale(scale=scale):
            pyro.sample("y", dist.Normal(X[i] @ w, 1.0), obs=Y[i])

    with raises_with(f"observed site 'y' is scaled by {found}, expected N/n = 4", "poutine.scale"):
        run_dense_model(observe)


def test_a_scale_around_the_whole_model():
    with raises_with("poutine.scale"):
        run_model(poutine.scale(sparse_regression, scale=0.1), X, Y)
    with raises_with("observed site 'y' is scaled by 0.1, expected N/n = 1", "inverse_temperature"):
        run_model(poutine.scale(dense_regression, scale=0.1), X, Y)


@pytest.mark.parametrize("handler", [poutine.scale(scale=0.5), poutine.mask(mask=False)])
def test_a_handler_around_ssgl(handler):
    def model():
        with handler:
            _, _, beta = sparse_prior()
        pyro.sample("y", dist.Normal(X @ beta, 1.0).to_event(1), obs=Y)

    with raises_with("SSGL site 'beta'", "poutine.scale or poutine.mask", "observed sites only"):
        run_model(model)


def test_a_plate_made_outside_of_the_model():
    """Its indices are drawn once, when it is made: every step would use the same batch."""
    data = pyro.plate("data", N, subsample_size=5)

    def observe(w):
        with data as i:
            pyro.sample("y", dist.Normal(X[i] @ w, 1.0), obs=Y[i])

    with raises_with("plate 'data'", "(5 of 20)", "inside the model"):
        run_dense_model(observe)


def test_a_model_with_nothing_to_sample():
    def model():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=Y[0])

    with raises_with("no continuous latent site", "pyro.sample"):
        run_model(model)


def test_saving_what_is_no_site():
    with raises_with("save names ['gamma']", "there are ['beta', 'beta_rho', 'delta', 'sigma2']"):
        run_model(sparse_regression, X, Y, save=["beta", "gamma"])
    with raises_with("'beta', expected a list of names, e.g. ['beta']", error=TypeError):
        run_model(sparse_regression, X, Y, save="beta")


def test_first_values_of_another_shape():
    def observe(w):
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=Y[0])

    for shape in [(P + 1,), (), (1, P)]:
        strategy = init_to_value(values={"w": torch.zeros(shape)})
        with raises_with("'w'", str(tuple(shape)), f"expected ({P},)"):
            run_dense_model(observe, init_strategy=strategy)


def test_first_values_outside_the_support():
    strategy = init_to_value(values={"sigma2": torch.tensor(-1.0)})
    with raises_with("no starting point with a finite potential", "init_to_value"):
        run_model(sparse_regression, X, Y, init_strategy=strategy)


# Models that change from step to step


class Changing:
    """A model whose sites change when ``changed`` is set; ``run`` sets it after setup."""

    def __init__(self, model) -> None:
        self.model = model
        self.changed = False

    def __call__(self, *args):
        return self.model(self.changed, *args)

    def run(self, adaptation=None) -> AEBKernel:
        kernel = AEBKernel(self, SGLD(1e-3), adaptation, seed=0)
        kernel.setup(0)
        params = kernel.sample(kernel.initial_params)
        self.changed = True
        kernel.sample(params)
        return kernel


def observe_all(w):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)


@pytest.mark.parametrize(
    "prior, adaptation",
    [
        (lambda: dist.Normal(0.0, 1.0), None),
        (lambda: dist.Laplace(0.0, 1.0), None),
        (lambda: dist.HalfNormal(1.0), None),
        (lambda: SSGL(0.1, 10.0, 0.5), None),
        (lambda: SSGL(0.1, 10.0, 0.5), ADAPTATION),
    ],
    ids=["normal", "general", "positive", "SSGL sampled", "SSGL learned"],
)
@pytest.mark.parametrize("shape", [(1,), (P + 1,), (2, P)], ids=str)
def test_a_site_that_changes_its_shape(prior, adaptation, shape):
    @Changing
    def model(changed):
        shape_now = shape if changed else (P,)
        w = pyro.sample("w", prior().expand(shape_now).to_event(len(shape_now)))
        observe_all(w.reshape(-1)[:P])

    with pyro.validation_enabled(False):
        with raises_with(f"site 'w' has shape {shape}, expected ({P},)", "keep its shape"):
            model.run(adaptation)


def test_a_site_that_appears():
    @Changing
    def model(changed):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        observe_all(w + (pyro.sample("shift", dist.Normal(0.0, 1.0)) if changed else 0.0))

    with raises_with("latent site 'shift' was not there", "expected the same sites", "['w']"):
        model.run()


def test_a_site_that_disappears():
    @Changing
    def model(changed):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        scale = 1.0 if changed else pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w, scale), obs=Y)

    with raises_with("'scale'", "expected the same sites"):
        model.run()


def test_an_observed_site_that_turns_latent():
    @Changing
    def model(changed):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=None if changed else Y[0])

    with raises_with("latent site 'y' was not there", "expected the same sites"):
        model.run()


def test_a_plate_that_appears():
    @Changing
    def model(changed):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("late" if changed else "data", N):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=Y)

    with raises_with("plate 'late' was not there", "expected the same"):
        model.run()


def test_a_batch_that_changes_its_size():
    @Changing
    def model(changed):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample_size=4 if changed else 5) as i:
            pyro.sample("y", dist.Normal(X[i] @ w, 1.0), obs=Y[i])

    with raises_with("plate 'data'", "4", "expected", "5"):
        model.run()


# A run that goes wrong


def diverge(model, step_size: float) -> NonFiniteError:
    kernel = AEBKernel(model, SGLD(step_size), seed=0)
    with pytest.raises(NonFiniteError) as info:
        MCMC(kernel, 1000, 0, disable_progbar=True).run(X, Y)
    error = info.value
    assert len(error.draws["w"]) == error.step - 1 == len(kernel.recover()["w"])
    assert torch.isfinite(error.draws["w"]).all()
    assert "step size" in str(error) and "kernel.recover()" in str(error)
    return error


def test_a_step_size_that_makes_the_potential_overflow():
    """
    X'X / s^2 has eigenvalues of about 80, so steps of 1 grow about 80-fold. The squared errors
    overflow in single precision, 3e38 = 80^20, after about half of 20 steps, their gradient later.
    """
    error = diverge(dense_regression, 1.0)
    assert 7 < error.step < 15
    assert f"step {error.step}: the potential is not finite" in str(error)
    assert "it is 1, try 0.1" in str(error)


def test_a_step_size_that_makes_the_gradient_overflow():
    """The gradient of a Normal prior is -w, so steps of 1000 grow about 1000-fold, to 1e39."""

    def model(X, Y):
        pyro.sample("first", dist.Normal(0.0, 1e3).expand([P]).to_event(1))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Bernoulli(logits=X @ w), obs=(Y > 0).float())

    error = diverge(model, 1000.0)
    assert 10 < error.step < 16 and error.site == "w"
    assert f"step {error.step}: " in str(error) and "site 'w' is not finite" in str(error)
    assert "it is 1e+03, try 1e+02" in str(error)


def test_a_model_that_raises_in_the_middle():
    class Broken(Exception):
        pass

    @Changing
    def model(changed):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        observe_all(w)
        if changed:
            raise Broken("disk full")

    def hook(kernel, params, stage, i):
        model.changed = i == 2

    kernel = AEBKernel(model, SGLD(1e-3), seed=0)
    with pytest.raises(Broken, match="disk full"):
        MCMC(kernel, 10, 0, hook_fn=hook, disable_progbar=True).run()
    assert kernel.recover()["w"].shape == (3, P)


class NoTorchDistribution(dist.Distribution):
    """A density and a sampler, as Pyro's base class asks for, without shapes."""

    def sample(self, *args, **kwargs):
        return torch.randn(())

    def log_prob(self, x, *args, **kwargs):
        return -0.5 * x**2


@pytest.mark.parametrize("obs", [None, torch.tensor(0.5)], ids=["latent", "observed"])
def test_a_distribution_without_a_shape(obs):
    def model():
        pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", NoTorchDistribution(), obs=obs)

    with raises_with("'x' ~ NoTorchDistribution", "no batch_shape", "pyro.factor"):
        AEBKernel(model, SGLD(1e-3)).setup(0)
