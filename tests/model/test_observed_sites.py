# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Data are told from soft constraints, factors and reparametrised latents: in the model's structure,
in predictions, in the checks of a loader, and in what goes to ArviZ.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from many_chains import run_together
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from replayed_runs import replay_draws
from torch.utils.data import DataLoader, TensorDataset

import pyro_aeb as aeb
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.nn import PosteriorPredictive

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=GENERATOR)
Y = X @ torch.tensor([1.0, -1.0, 0.0]) + 0.5 * torch.randn(40, generator=GENERATOR)
SCHOOLS = torch.randn(8, generator=GENERATOR) + 5.0


def constrained(x, y=None, batch_size=None):
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    pyro.sample("sum_to_zero", dist.Normal(b.sum(), 0.1), obs=torch.tensor(0.0))
    with pyro.plate("data", len(x), subsample_size=batch_size) as i:
        return pyro.sample("y", dist.Normal(x[i] @ b, 0.5), obs=None if y is None else y[i])


def smooth(x, y=None):
    """A random walk's steps as a constraint in a plate."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with pyro.plate("steps", 2):
        pyro.sample("step", dist.Normal(b.diff(), 1.0), obs=torch.zeros(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)


def factors(x, y=None):
    """A prior on a function of a latent, as a factor graph has it."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    pyro.sample("size", dist.LogNormal(0.0, 1.0), obs=b.square().sum() + 0.1)
    with pyro.plate("pairs", 2):
        pyro.sample("pair", dist.Normal(0.0, 1.0), obs=b[1:] * b[:-1])
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)


def schools(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        return pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def log_normal(y=None):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", 8):
        return pyro.sample("y", dist.Normal(0.0, scale), obs=y)


non_centered = pyro.poutine.reparam(schools, {"theta": LocScaleReparam(0.0)})
on_the_log = pyro.poutine.reparam(log_normal, {"scale": TransformReparam()})


def closed_over(x):
    """The data are not among the arguments."""
    return constrained(x, Y)


def two(x, y=None, z=None):
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    pyro.sample("sum_to_zero", dist.Normal(b.sum(), 0.1), obs=0.0)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)
        pyro.sample("z", dist.Normal(-(x @ b), 0.5), obs=z)


def picked(x, y):
    """Data that are not among the arguments, picked by the indices of a plate."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)
    with pyro.plate("others", len(Y), subsample_size=4) as i:
        pyro.sample("z", dist.Normal(b.sum(), 0.5), obs=Y[i])


@pytest.mark.parametrize(
    "model, args, data, reparametrised",
    [
        (constrained, (X, Y), {"y"}, ()),
        (constrained, (X, Y, 10), {"y"}, ()),
        (smooth, (X, Y), {"y"}, ()),
        (factors, (X, Y), {"y"}, ()),
        (closed_over, (X,), {"y"}, ()),
        (pyro.condition(constrained, data={"y": Y}), (X,), {"y"}, ()),
        (non_centered, (SCHOOLS,), {"y"}, ("theta",)),
        (on_the_log, (SCHOOLS,), {"y"}, ("scale",)),
        (two, (X, Y, -Y), {"y", "z"}, ()),
        (picked, (X, Y), {"y", "z"}, ()),
    ],
)
def test_data_are_told_from_other_observed_sites(model, args, data, reparametrised):
    structure = inspect_model(model, args, {}, adapt=True)
    assert set(structure.observed) == data
    assert structure.reparametrised == reparametrised
    assert set(structure.observations) <= data


def make_run(model, *args, kernel=None, draws=20, **kwargs):
    kernel = kernel or aeb.AEBKernel(model, aeb.SGLD(1e-3), seed=0)
    run = MCMC(kernel, draws, 20, disable_progbar=True)
    run.run(*args, **kwargs)
    return run


@pytest.mark.parametrize("model", [constrained, smooth, factors])
def test_predictions_are_of_the_data(model):
    run = make_run(model, X, Y)
    predict = PosteriorPredictive(model, run)
    expected = X[:5] @ run.get_samples()["b"].mean(0)
    torch.testing.assert_close(predict(X[:5]).mean, expected, rtol=1e-4, atol=1e-5)
    assert predict.evaluate(X, Y) == PosteriorPredictive(model, run, site="y").evaluate(X, Y)
    # The draws of another kernel, of which only the arguments tell.
    replayed = replay_draws(b=run.get_samples()["b"])
    assert PosteriorPredictive(model, replayed).evaluate(X, Y) == predict.evaluate(X, Y)
    if model is factors:  # no site but y can be meant
        torch.testing.assert_close(PosteriorPredictive(model, replayed)(X[:5]), predict(X[:5]))
        return
    with pytest.raises(aeb.ModelError, match=r"latent sites \['y'\].*choose it with site="):
        PosteriorPredictive(model, replayed)(X[:5])


def test_predictions_during_a_run_are_of_the_data():
    predict = PosteriorPredictive(constrained, data=(X, None))
    kernel = aeb.AEBKernel(constrained, aeb.SGLD(1e-3), seed=0)
    run = MCMC(kernel, 5, 2, hook_fn=predict.hook, disable_progbar=True)
    run.run(X, Y)
    expected = X @ run.get_samples()["b"].mean(0)
    torch.testing.assert_close(predict().mean, expected, rtol=1e-4, atol=1e-5)


def test_of_several_likelihoods_beside_a_constraint_one_must_be_chosen():
    run = make_run(two, X, Y, -Y)
    with pytest.raises(aeb.ModelError, match=r"2 observed sites \['y', 'z'\].*site=name"):
        PosteriorPredictive(two, run).evaluate(X, Y, -Y)
    with pytest.raises(aeb.ModelError, match=r"2 observed sites \['y', 'z'\].*site=name"):
        PosteriorPredictive(two, run)(X)
    replayed = replay_draws(b=run.get_samples()["b"])
    with pytest.raises(aeb.ModelError, match=r"2 observed sites \['y', 'z'\].*site=name"):
        PosteriorPredictive(two, replayed).evaluate(X, Y, -Y)


def test_a_reparametrised_model_predicts_its_data():
    run = make_run(non_centered, SCHOOLS)
    draws = run.get_samples()
    theta = draws["mu"][:, None] + draws["theta_decentered"]
    moments = PosteriorPredictive(non_centered, run)()
    torch.testing.assert_close(moments.mean, theta.mean(0), rtol=1e-4, atol=1e-5)
    replayed = replay_draws(mu=draws["mu"], theta_decentered=draws["theta_decentered"])
    found = PosteriorPredictive(non_centered, replayed).evaluate(SCHOOLS)
    assert found == PosteriorPredictive(non_centered, run).evaluate(SCHOOLS)


def test_a_reparametrised_latent_of_a_batch_s_length_is_no_batch():
    def model(x, y=None):
        with pyro.plate("groups", 8):
            theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 40, subsample=x):
            return pyro.sample("y", dist.Normal(theta[:3] @ x.T, 0.5), obs=y)

    model = pyro.poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    assert make_run(model, loader).get_samples()["theta_decentered"].shape == (20, 8)


def test_a_factor_of_a_learned_scale_is_refused():
    def model(x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(2.0, 2.0))
        with pyro.plate("features", 3):
            prior = aeb.SSGL(v0=0.1, v1=1.0, delta=0.5, sigma=sigma2.sqrt())
            b = pyro.sample("b", prior)
        pyro.sample("penalty", dist.Normal(0.0, 1.0), obs=sigma2.log())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ b, sigma2.sqrt()), obs=y)

    with pytest.raises(aeb.ModelError, match="observed site 'penalty' .* no closed-form update"):
        inspect_model(model, (X, Y), {}, adapt=True)


def test_what_goes_to_arviz_as_data_is_data():
    found = aeb.to_arviz(make_run(constrained, X, Y))
    assert list(found.observed_data.data_vars) == ["y"]
    found = aeb.to_arviz(make_run(factors, X, Y))
    assert list(found.observed_data.data_vars) == ["y"]
    assert "size" not in found.posterior


def test_the_posterior_of_a_soft_constraint_is_that_of_nuts():
    exact = _posterior_mean()
    run = make_run(constrained, X, Y, kernel=NUTS(constrained), draws=100)
    torch.testing.assert_close(run.get_samples()["b"].mean(0), exact, atol=0.05, rtol=0.0)
    draws = run_together(constrained, aeb.transitions.HMC(0.02, 12), 250, 20, X, Y)
    torch.testing.assert_close(draws["b"].mean(0), exact, atol=0.05, rtol=0.0)


def _posterior_mean():
    """The mean under the constraint, a datum of value 0 at the point (1, 1, 1)."""
    ones = torch.ones(3, 1)
    precision = X.T @ X / 0.25 + ones @ ones.T / 0.01 + torch.eye(3) / 9.0
    return torch.linalg.solve(precision, X.T @ Y / 0.25)
