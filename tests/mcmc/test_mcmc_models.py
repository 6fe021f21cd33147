# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Models of many kinds under Pyro's own MCMC, and posteriors that are known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from many_chains import run_together
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    DenseNetwork,
    P,
    dense_regression,
    double_regression,
    eight_schools,
    linear_data,
    sparse_layers,
    sparse_prior,
)
from pyro.infer import MCMC, Predictive
from pyro_runs import ADAPTATION, DATA, N, X, Y, make_kernel, make_pyro_mcmc

import pyro_aeb as aeb

# Models


def site_shapes(run: MCMC) -> dict[str, tuple[int, ...]]:
    return {name: tuple(draws.shape[1:]) for name, draws in run.get_samples().items()}


def test_without_adaptation_latents_are_sampled_too():
    run = make_pyro_mcmc(make_kernel(adaptation=None))
    run.run(X, Y, **DATA)
    draws = run.get_samples()
    assert site_shapes(run) == {"beta": (P,), "delta": (), "sigma2": ()}
    assert all(len(draw.unique(dim=0)) == 6 for draw in draws.values())
    assert set(run._diagnostics[0]["roles"].values()) == {"draw", "observed"}
    assert run._diagnostics[0]["adaptation"] == {}


def test_eight_schools():
    run = make_pyro_mcmc(make_kernel(eight_schools))
    run.run(SCHOOLS_SIGMA, SCHOOLS_Y)
    assert site_shapes(run) == {"mu": (), "tau": (), "eta": (8,)}
    assert (run.get_samples()["tau"] > 0).all()
    idata = aeb.to_arviz(run)
    assert idata.posterior["eta"].dims == ("chain", "draw", "schools")
    predicted = Predictive(eight_schools, run.get_samples())(SCHOOLS_SIGMA)
    assert predicted["y"].shape == predicted["theta"].shape == (6, 8)


def test_a_horseshoe():
    def model(X, y):
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("features", P):
            lambdas = pyro.sample("lambdas", dist.HalfCauchy(tau))
            w = pyro.sample("w", dist.Normal(0.0, lambdas))
        slope = pyro.sample("slope", dist.Laplace(0.0, tau))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ w + slope, 0.5), obs=y)

    run = make_pyro_mcmc(make_kernel(model))
    run.run(X, Y)
    assert site_shapes(run) == {"tau": (), "lambdas": (P,), "w": (P,), "slope": ()}


def test_a_network_of_pyros_tutorials():
    network = DenseNetwork()
    run = make_pyro_mcmc(make_kernel(network))
    run.run(X, Y)
    assert site_shapes(run) == {
        "first.weight": (4, P),
        "first.bias": (4,),
        "last.weight": (1, 4),
        "scale": (),
    }
    assert Predictive(network.eval(), run.get_samples())(X[:5])["y"].shape == (6, 5)


def test_layers_with_their_own_delta():
    run = make_pyro_mcmc(make_kernel(sparse_layers))
    run.run(X, Y)
    assert site_shapes(run) == {
        "sigma2": (),
        "delta0": (),
        "delta1": (),
        "w0": (P, 4),
        "w1": (4, 1),
    }
    adaptation = run._diagnostics[0]["adaptation"]
    assert {name: tuple(rho.shape) for name, rho in adaptation.items()} == {
        "w0_rho": (6, P, 4),
        "w1_rho": (6, 4, 1),
    }


@pytest.mark.parametrize("adaptation", [ADAPTATION, None], ids=["SA", "plain"])
def test_latents_of_one_element_keep_their_shape(adaptation):
    def model(X, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0).expand([1]).to_event(1))
        with pyro.plate("layers", 1):
            delta = pyro.sample("delta", dist.Beta(2.0, 3.0))
        with pyro.plate("features", P):
            beta = pyro.sample("beta", aeb.SSGL(0.1, 10.0, delta[0], sigma2[0].sqrt()))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(X @ beta, sigma2[0].sqrt()), obs=y)

    run = make_pyro_mcmc(make_kernel(model, adaptation=adaptation))
    run.run(X, Y)
    assert site_shapes(run) == {"sigma2": (1,), "delta": (1,), "beta": (P,)}


@pytest.mark.parametrize("adaptation", [ADAPTATION, None], ids=["SA", "plain"])
def test_double_precision(adaptation):
    run = make_pyro_mcmc(make_kernel(double_regression, adaptation=adaptation))
    run.run(X.double(), Y.double())
    assert {draws.dtype for draws in run.get_samples().values()} == {torch.float64}


def test_double_precision_by_default():
    torch.set_default_dtype(torch.float64)
    run = make_pyro_mcmc()
    run.run(X.double(), Y.double(), **DATA)
    assert {draws.dtype for draws in run.get_samples().values()} == {torch.float64}
    stats = run._diagnostics[0]["sample_stats"]
    assert {value.dtype for value in stats.values()} == {torch.float64, torch.bool}


@pytest.mark.parametrize("adaptation", [ADAPTATION, None], ids=["SA", "plain"])
@pytest.mark.parametrize("n, p", [(20, 1), (1, 3), (1, 1)])
def test_one_feature_or_one_datum(n, p, adaptation):
    run = make_pyro_mcmc(make_kernel(adaptation=adaptation))
    run.run(X[:n, :p], Y[:n])
    assert site_shapes(run) == {"beta": (p,), "delta": (), "sigma2": ()}
    assert all(torch.isfinite(draw).all() for draw in run.get_samples().values())


def test_a_model_without_arguments():
    def model():
        _, _, beta = sparse_prior()
        with pyro.plate("data", N, subsample_size=4) as i:
            pyro.sample("y", dist.Bernoulli(logits=X[i] @ beta), obs=(Y[i] > 0).float())

    run = make_pyro_mcmc(make_kernel(model))
    run.run()
    assert run.get_samples()["beta"].shape == (6, P)


def test_a_model_without_data_samples_its_prior():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    run = make_pyro_mcmc(make_kernel(model))
    run.run()
    assert run.get_samples()["z"].shape == (6, 2)


# Posteriors


def assert_mean_of_ar1(draws: torch.Tensor, mean, variance, correlation) -> None:
    """
    Checks means of draws against the mean of a stationary AR(1) process, within 5 standard errors
    of its mean: the variance of a mean of m draws is variance / m (1 + r) / (1 - r) for m large.
    """
    error = (variance / len(draws) * (1 + correlation) / (1 - correlation)) ** 0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error).all(), (draws.mean(0) - mean) / error


@pytest.mark.slow
def test_a_conjugate_posterior():
    """
    Linear regression with known noise: the posterior is N(m, H^-1) with H = X'X / s^2 + I / 4 and
    H m = X'y / s^2. In the eigenvectors of H a step of SGLD is an AR(1) process around m with
    r = 1 - epsilon h, so draws have r^k and variance 1 / (h (1 - epsilon h / 2)).
    """
    torch.set_default_dtype(torch.float64)
    x, y = X.double(), Y.double()
    H = x.T @ x / 0.25 + torch.eye(P) / 4.0
    mean = torch.linalg.solve(H, x.T @ y / 0.25)
    h, vectors = torch.linalg.eigh(H)
    epsilon, k = 0.4 / float(h.max()), 5
    draws = run_together(dense_regression, aeb.SGLD(epsilon), 2000, 100, x, y, steps_per_draw=k)
    draws = (draws["w"] - mean) @ vectors
    correlation = (1 - epsilon * h) ** k
    variance = 1 / (h * (1 - epsilon * h / 2))
    assert_mean_of_ar1(draws, torch.zeros(P), variance, correlation)
    # Squares of a Gaussian AR(1) process are correlated by r^2, with variance 2 variance^2.
    assert_mean_of_ar1(draws**2, variance, 2 * variance**2, correlation**2)


class Law:
    """
    The law of every k-th step of SGLD in one dimension, u' ~ N(u + epsilon g(u), 2 epsilon) with g
    the derivative of a log density, on a grid.
    """

    def __init__(self, log_density, step_size: float, k: int, grid: torch.Tensor) -> None:
        u = grid.clone().requires_grad_()
        (g,) = torch.autograd.grad(log_density(u).sum(), u)
        centre, scale = grid + step_size * g, math.sqrt(2 * step_size)
        step = torch.exp(-0.5 * ((grid - centre[:, None]) / scale) ** 2)
        self.transition = torch.linalg.matrix_power(step / step.sum(1, keepdim=True), k)
        self.stationary = torch.linalg.matrix_power(self.transition, 2**20)[0]

    def mean_and_error(self, f: torch.Tensor, draws: int):
        """The mean of f over many draws, and its standard error, by the Poisson equation."""
        mean = self.stationary @ f
        f = f - mean
        # s = f + K s with stationary mean 0; the variance of the mean is E[2 f s - f^2] / draws
        system = torch.eye(len(f)) - self.transition + self.stationary
        s = torch.linalg.solve(system, f)
        return mean, (self.stationary @ (2 * f * s - f**2) / draws).sqrt()


def positive():
    """x = exp(u), with Jacobian exp(u)."""
    y = 2.0 * linear_data(5, dtype=torch.float64)[1]

    def model():
        scale = pyro.sample("x", dist.HalfCauchy(1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    def log_density(u):
        prior = dist.HalfCauchy(1.0).log_prob(u.exp()) + u
        return prior + dist.Normal(0.0, u.exp()[:, None]).log_prob(y).sum(-1)

    centre = float(y.square().mean().sqrt().log())
    return model, log_density, torch.exp, (centre - 1.2, centre + 4.0), 0.05


def simplex():
    """x0 = sigmoid(u), which is stick breaking of two, with Jacobian x0 (1 - x0)."""

    def model():
        x = pyro.sample("x", dist.Dirichlet(torch.tensor([1.0, 2.0])))
        pyro.sample("y", dist.Multinomial(8, x), obs=torch.tensor([6.0, 2.0]))

    def log_density(u):  # the posterior is Dirichlet(7, 4)
        return 7 * torch.nn.functional.logsigmoid(u) + 4 * torch.nn.functional.logsigmoid(-u)

    return model, log_density, torch.sigmoid, (-8.0, 8.0), 0.2


def interval():
    """x = -1 + 3 sigmoid(u), with Jacobian proportional to sigmoid(u) (1 - sigmoid(u))."""

    def constrained(u):
        return 3 * torch.sigmoid(u) - 1

    def model():
        x = pyro.sample("x", dist.Uniform(-1.0, 2.0))
        pyro.sample("y", dist.Normal(x, 0.7), obs=torch.tensor(0.8))

    def log_density(u):
        jacobian = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
        return jacobian - (0.8 - constrained(u)) ** 2 / (2 * 0.49)

    return model, log_density, constrained, (-8.0, 8.0), 0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", [positive, simplex, interval], ids=lambda case: case.__name__)
def test_a_posterior_in_a_constrained_space(case):
    """
    Against the law of the chain itself, with its finite steps, computed on a grid of the
    unconstrained space: the only tolerance is Monte Carlo error, 5 standard errors.
    """
    torch.set_default_dtype(torch.float64)
    model, log_density, constrained, (low, high), step_size = case()
    draws, k = 1000, 5
    run = make_pyro_mcmc(
        make_kernel(model, step_size, adaptation=None, steps_per_draw=k), draws, 50
    )
    run.run()
    x = run.get_samples()["x"].reshape(draws, -1)[:, 0]
    grid = torch.linspace(low, high, 400)
    law = Law(log_density, step_size, k, grid)
    for f in (lambda x: x, lambda x: x**2):
        mean, error = law.mean_and_error(f(constrained(grid)), draws)
        assert abs(f(x).mean() - mean) < 5 * error
        assert error < 0.1 * mean, "the test says little"
