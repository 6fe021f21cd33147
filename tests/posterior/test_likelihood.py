# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The density and its gradient against Pyro's own: the log density of a trace with all sites given,
and the potential function of Pyro's HMC and NUTS, Jacobians of transforms included.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    DenseNetwork,
    N,
    P,
    SparseNetwork,
    dense_regression,
    eight_schools,
    linear_data,
    scale_and_simplex,
    sparse_classification,
    sparse_layers,
    sparse_regression,
)
from pyro import poutine
from pyro.distributions.distribution import COERCIONS
from pyro.infer.mcmc.util import initialize_model
from torch.autograd import grad

from pyro_aeb import SSGL
from pyro_aeb.data.arguments import Arguments, Batch
from pyro_aeb.model.inspection import inspect_model
from pyro_aeb.posterior.likelihood import Likelihood
from pyro_aeb.posterior.posterior import Posterior

X, Y = linear_data(dtype=torch.float64)


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def whole_batch(structure, args=()):
    """A batch with the indices of plates that are not subsampled."""
    indices = {name: torch.arange(size) for name, (size, _) in structure.plates.items()}
    return Batch(Arguments(args, {}), indices)


# Everything sampled: Pyro's potential function


def horseshoe():
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("features", P):
        lambdas = pyro.sample("lambda", dist.HalfCauchy(tau))
        w = pyro.sample("w", dist.Normal(0.0, lambdas))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(X @ w, 0.5), obs=Y)


def every_space():
    a = pyro.sample("a", dist.Uniform(-1.0, 2.0))
    b = pyro.sample("b", dist.Beta(2.0, 3.0).expand([2]).to_event(1))
    c = pyro.sample("c", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    d = pyro.sample("d", dist.LogNormal(0.0, b[0]))
    L = pyro.sample("L", dist.LKJCholesky(3, 2.0))
    with pyro.plate("rows", 2):
        e = pyro.sample("e", dist.MultivariateNormal(a.expand(3), scale_tril=L))
        f = pyro.sample("f", dist.Gamma(2.0, d))
    with pyro.plate("data", N):
        pyro.sample("y", dist.StudentT(3.0, (e @ c).sum() + f[1], d), obs=Y)


def handlers():
    with poutine.scale(scale=0.5):
        s = pyro.sample("s", dist.HalfNormal(2.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("some", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        u = pyro.sample("u", dist.Normal(1.0, 2.0))
    pyro.factor("penalty", -w.square() * s)
    total = pyro.deterministic("total", w + u.sum())
    with pyro.plate("data", N), poutine.mask(mask=Y > 0.0):
        pyro.sample("y", dist.Normal(total, s), obs=Y)


def masked_positive():
    with pyro.plate("some", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        u = pyro.sample("u", dist.HalfNormal(2.0))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(u[0] + u[2], 1.0), obs=Y)


def weighted():
    """Weights of rows, of the numbers in them, and of latents; with a mask, and in a factor."""
    with pyro.plate("some", 3), poutine.scale(scale=torch.tensor([0.5, 0.1, 2.0])):
        u = pyro.sample("u", dist.Normal(1.0, 2.0))
    loc = u.sum() + X[:, :2]
    with pyro.plate("data", N, dim=-2), poutine.scale(scale=Y[:, None].square()):
        fn = dist.Normal(loc[:, None], 1.0).to_event(1)
        pyro.sample("rows", fn, obs=Y[:, None, None] + X[:, None, :2])
        with pyro.plate("two", 2, dim=-1), poutine.mask(mask=X[:, :2] > 0.0):
            pyro.sample("y", dist.Laplace(loc, 1.0), obs=Y[:, None].expand(N, 2))
    with pyro.plate("more", N), poutine.scale(scale=Y.abs()):
        pyro.factor("penalty", -(loc[:, 0] ** 2))


def masked_distributions():
    some = torch.tensor([True, False, True])
    u = pyro.sample("u", dist.Normal(1.0, 2.0).expand([3]).mask(some).to_event(1))
    with pyro.plate("some", 3):
        v = pyro.sample("v", dist.HalfNormal(2.0).mask(some))
    with pyro.plate("data", N), poutine.mask(mask=X[:, 0] > -0.5):
        pyro.sample("y", dist.Laplace(u.sum(), v.sum()).mask(Y > 0.0), obs=Y)


def no_plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=Y)
    pyro.sample("z", dist.Normal(mu, 1.0).expand([N]).to_event(1), obs=Y)


def nested_plates():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 4, dim=-2):
        g = pyro.sample("g", dist.Normal(mu, 1.0))
        with pyro.plate("data", 5, dim=-1):
            pyro.sample("y", dist.Normal(g, 0.3), obs=Y.reshape(4, 5))


def sequential_plates():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("groups", 4):
        g = pyro.sample(f"g{i}", dist.Laplace(mu, 1.0))
        pyro.sample(f"y{i}", dist.Normal(g, 0.3), obs=Y[i])


def given_subsample():
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([P]).to_event(1))
    with pyro.plate("data", N, subsample=torch.tensor([7, 2, 11, 3])) as i:
        pyro.sample("y", dist.Normal(X[i] @ w, 0.5), obs=Y[i])


def classes():
    W = pyro.sample("W", SSGL(0.1, 10.0, 0.3, 0.7).expand([P, 4]).to_event(2))
    with pyro.plate("data", N):
        pyro.sample("y", dist.Categorical(logits=X @ W), obs=torch.arange(N) % 4)


MODELS = {
    "eight schools": (eight_schools, (SCHOOLS_SIGMA.double(), SCHOOLS_Y.double())),
    "dense regression": (dense_regression, (X, Y)),
    "sparse regression": (sparse_regression, (X, Y)),
    "sparse classification": (sparse_classification, (X, Y)),
    "sparse layers": (sparse_layers, (X, Y)),
    "scale and simplex": (scale_and_simplex, (Y,)),
    **{
        model.__name__.replace("_", " "): (model, ())
        for model in (
            horseshoe,
            every_space,
            handlers,
            masked_positive,
            masked_distributions,
            weighted,
            no_plate,
            nested_plates,
            sequential_plates,
            given_subsample,
            classes,
        )
    },
}


@pytest.mark.parametrize("model, args", MODELS.values(), ids=MODELS)
def test_potential_and_gradient_are_those_of_pyros_hmc(model, args):
    first, potential_fn, _, _ = initialize_model(model, model_args=args)
    structure = inspect_model(model, args, {}, adapt=False)
    posterior = Posterior(model, structure)

    def ours(unconstrained):
        position = torch.cat([unconstrained[b.name].reshape(-1) for b in structure.blocks])
        result = posterior.evaluate(position, None, whole_batch(structure, args))
        potential = posterior.potential(result.log_density, position, None)
        return potential, structure.unflatten(-result.gradient)

    def pyros(unconstrained):
        unconstrained = {k: v.detach().requires_grad_() for k, v in unconstrained.items()}
        potential = potential_fn(unconstrained)
        gradients = grad(potential, list(unconstrained.values()))
        return potential.detach(), dict(zip(unconstrained, gradients, strict=True))

    assert {block.name for block in structure.blocks} == first.keys()
    points = [{k: v + 0.3 * torch.randn_like(v) for k, v in first.items()} for _ in range(3)]
    potentials, constants = [], []
    for point in points:
        (potential, gradient), (expected, expected_gradient) = ours(point), pyros(point)
        for name in first:
            torch.testing.assert_close(
                gradient[name], expected_gradient[name], rtol=1e-9, atol=1e-9, msg=name
            )
        potentials.append(expected)
        constants.append(potential - expected)
    # The potential is known up to a constant: normalisers of closed-form priors are left out.
    assert len(set(map(float, potentials))) == 3
    torch.testing.assert_close(constants[1:], constants[:1] * 2, rtol=1e-9, atol=1e-9)


def test_a_network_has_the_gradient_of_its_log_joint():
    network = DenseNetwork().double().eval()
    structure = inspect_model(network, (X, Y), {}, adapt=False)
    posterior = Posterior(network, structure)
    position = torch.randn(structure.size)
    gradient = posterior.evaluate(position, None, whole_batch(structure, (X, Y))).gradient

    at = position.clone().requires_grad_()
    values = structure.unflatten(at)
    log_scale = values["scale"]
    conditioned = poutine.condition(network, data={**values, "scale": log_scale.exp()})
    # d(exp(u)) = exp(u) du: the logarithm of the Jacobian is u
    log_joint = poutine.trace(conditioned).get_trace(X, Y).log_prob_sum() + log_scale
    torch.testing.assert_close(gradient, grad(log_joint, at)[0])


# Learned latents: the observed sites alone, their latents given


def observed_log_prob(model, data, args, **kwargs):
    """The log density of the model's own observed sites, as Pyro has it."""
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    given = data.keys()
    return sum(
        site["log_prob_sum"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and name not in given
    )


def sparse_model(scale, mask=True):
    """Sparse regression with a scale ``scale(sigma, X @ w)``, w with a normal prior."""

    def model():
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        beta = pyro.sample("beta", SSGL(0.1, 10.0, 0.5, sigma2.sqrt()).expand([P]).to_event(1))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1))
        with pyro.plate("data", N, subsample_size=8) as i:
            with poutine.mask(mask=mask if isinstance(mask, bool) else mask[i]):
                mean = X[i] @ (beta + w)
                pyro.sample("y", dist.Normal(mean, scale(sigma2.sqrt(), X[i] @ w)), obs=Y[i])

    return model


SCALES = {  # scale = c sigma: the function of sigma and X @ w, and c as a function of X @ w
    "sigma": (lambda sigma, xw: sigma, lambda xw: torch.ones_like(xw)),
    "2 sigma": (lambda sigma, xw: 2.0 * sigma, lambda xw: torch.full_like(xw, 2.0)),
    "c(w) sigma": (lambda sigma, xw: sigma * torch.exp(0.1 * xw), lambda xw: torch.exp(0.1 * xw)),
}
MASKS = {"all": True, "some": Y > -0.5, "none": False}
BATCH = torch.tensor([0, 19, 4, 3, 12, 7, 8, 15])


@pytest.mark.parametrize("scale, c", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_gradient_and_residuals_of_a_likelihood_with_a_learned_sigma(scale, c, mask):
    model = sparse_model(scale, mask)
    structure = inspect_model(model, (), {}, adapt=True)
    assert structure.sigmas[0].likelihoods == {"y"}
    sigma2, position = torch.tensor(1.7), torch.randn(2 * P)
    result = Likelihood(model, structure).evaluate(
        position, {"sigma2": sigma2}, Batch(Arguments((), {}), {"data": BATCH})
    )

    at = position.clone().requires_grad_()
    values = structure.unflatten(at)
    data = {**values, "sigma2": sigma2, "data": BATCH}
    expected = observed_log_prob(model, data, ())
    # Pyro's log density has no gradient at all where all data are masked: then it is zero.
    torch.testing.assert_close(result.gradient, grad(expected + 0.0 * at.sum(), at)[0])

    # I = (N / n) sum of ((y - mean) / c)^2 over the data that count, and their number
    beta, w = position.split(P)
    z = (Y[BATCH] - X[BATCH] @ (beta + w)) / c(X[BATCH] @ w)
    counts = torch.full([8], mask) if isinstance(mask, bool) else mask[BATCH]
    residuals = result.statistics.residuals["y"]
    torch.testing.assert_close(residuals.square, N / 8 * (z**2 * counts).sum())
    assert float(residuals.data) == pytest.approx(N / 8 * int(counts.sum()))


SOME, NUMBERS = Y > -0.5, X[:, :2] > -0.3
WEIGHTED = {  # a handler around the likelihood, what the likelihood becomes, and the weights
    "poutine.scale": (poutine.scale(scale=Y.abs()), lambda fn: fn.to_event(1), Y.abs()[:, None]),
    "scale and poutine.mask": (
        lambda model: poutine.scale(poutine.mask(model, mask=SOME), scale=Y.abs()),
        lambda fn: fn.to_event(1),
        (Y.abs() * SOME)[:, None],
    ),
    "scale and dist.mask": (
        poutine.scale(scale=Y.abs()),
        lambda fn: fn.to_event(1).mask(SOME),
        (Y.abs() * SOME)[:, None],
    ),
    "mask of numbers": (
        lambda model: model,
        lambda fn: fn.mask(NUMBERS).to_event(1),
        NUMBERS.double(),
    ),
    "masks of both": (
        poutine.mask(mask=X[:, 2] > 0.0),
        lambda fn: fn.mask(NUMBERS).to_event(1).mask(SOME),
        ((X[:, 2] > 0.0) & SOME)[:, None] * NUMBERS.double(),
    ),
    "no data": (lambda model: model, lambda fn: fn.to_event(1).mask(False), torch.zeros(N, 1)),
    "all data": (lambda model: model, lambda fn: fn.mask(True).to_event(1), torch.ones(N, 1)),
}


@pytest.mark.parametrize("handler, change, weights", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("c", [False, True], ids=["sigma", "c(w) sigma"])
def test_residuals_of_weighted_and_masked_vectors(handler, change, weights, c):
    """I is the sum of w r^2, and N the sum of the weights: the log density has w (-log sigma)."""

    def scale_of(W, sigma):
        return sigma * (0.1 * X @ W).exp() if c else sigma

    data = Y[:, None] + X[:, :2]

    def model():
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        W = pyro.sample("W", SSGL(0.1, 10.0, 0.5, sigma2.sqrt()).expand([P, 2]).to_event(2))

        def observe():
            fn = dist.Normal(X @ W, scale_of(W, sigma2.sqrt()))
            pyro.sample("y", change(fn), obs=data)

        with pyro.plate("data", N):
            handler(observe)()

    structure = inspect_model(model, (), {}, adapt=True)
    position, sigma2 = torch.randn(2 * P), torch.tensor(0.6)
    result = Likelihood(model, structure).evaluate(
        position, {"sigma2": sigma2}, whole_batch(structure)
    )
    at, variance = position.clone().requires_grad_(), sigma2.clone().requires_grad_()
    values = {"W": at.reshape(P, 2), "sigma2": variance}
    expected = observed_log_prob(model, values, ()) + 0.0 * (at.sum() + variance)
    slopes = grad(expected, (at, variance))
    torch.testing.assert_close(result.gradient, slopes[0])
    W, weights = position.reshape(P, 2), weights.expand(N, 2)
    square = (weights * ((data - X @ W) / scale_of(W, torch.ones(()))).square()).sum()
    residuals = result.statistics.residuals["y"]
    torch.testing.assert_close(residuals.square, square)
    assert float(residuals.data) == pytest.approx(float(weights.sum()))
    # The declared density's derivative by sigma^2 is that of -N log(sigma^2)/2 - I/(2 sigma^2).
    slope = -weights.sum() / (2 * sigma2) + square / (2 * sigma2.square())
    torch.testing.assert_close(slopes[1], slope)


def test_residuals_of_vectors_with_a_mask_for_rows():
    mask = torch.arange(N) < 5

    def model():
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0))
        W = pyro.sample("W", SSGL(0.1, 10.0, 0.5, sigma2.sqrt()).expand([P, 2]).to_event(2))
        with pyro.plate("data", N), poutine.mask(mask=mask):
            pyro.sample(
                "y", dist.Normal(X @ W, sigma2.sqrt()).to_event(1), obs=Y[:, None] + X[:, :2]
            )

    structure = inspect_model(model, (), {}, adapt=True)
    position, sigma2 = torch.randn(2 * P), torch.tensor(0.6)
    likelihood = Likelihood(model, structure)
    result = likelihood.evaluate(position, {"sigma2": sigma2}, whole_batch(structure))
    at = position.clone().requires_grad_()
    data = {"W": at.reshape(P, 2), "sigma2": sigma2}
    torch.testing.assert_close(result.gradient, grad(observed_log_prob(model, data, ()), at)[0])
    error = (Y[:, None] + X[:, :2] - X @ position.reshape(P, 2))[:5]
    torch.testing.assert_close(result.statistics.residuals["y"].square, error.square().sum())
    assert result.statistics.residuals["y"].data == 5 * 2


@pytest.mark.parametrize(
    "make",
    [lambda: sparse_regression, lambda: sparse_classification, SparseNetwork],
    ids=["regression", "classification", "module"],
)
def test_gradient_with_learned_latents_is_that_of_the_likelihood_alone(make):
    model = make()
    structure = inspect_model(model, (X, Y), {}, adapt=True)
    position = torch.randn(P)
    latents = {"sigma2": torch.tensor(0.7), "delta": torch.tensor(0.2)}
    likelihood = Likelihood(model, structure)
    result = likelihood.evaluate(position, latents, whole_batch(structure, (X, Y)))
    at = position.clone().requires_grad_()
    expected = observed_log_prob(model, {**latents, "beta": at}, (X, Y))
    torch.testing.assert_close(result.gradient, grad(expected, at)[0])


def test_log_density_leaves_out_only_what_weights_do_not_enter():
    structure = inspect_model(sparse_regression, (X, Y), {}, adapt=True)
    likelihood = Likelihood(sparse_regression, structure)
    latents = {"sigma2": torch.tensor(0.7), "delta": torch.tensor(0.2)}
    positions = torch.randn(2, P)
    ours = [
        likelihood.evaluate(at, latents, whole_batch(structure, (X, Y))).log_density
        for at in positions
    ]
    pyros = [
        observed_log_prob(sparse_regression, {**latents, "beta": at}, (X, Y)) for at in positions
    ]
    torch.testing.assert_close(ours[1] - ours[0], pyros[1] - pyros[0])


# Batches


def test_a_batch_counts_n_times_over_its_size():
    structure = inspect_model(dense_regression, (X, Y), {"batch_size": 8}, adapt=False)
    likelihood = Likelihood(dense_regression, structure)
    w = torch.randn(P)
    result = likelihood.evaluate(
        w, {}, Batch(Arguments((X, Y), {"batch_size": 8}), {"data": BATCH})
    )
    # d/dw log N(y; x w, 1/4) = (y - x w) x / (1/4), N / n times
    expected = N / 8 * ((Y[BATCH] - X[BATCH] @ w) @ X[BATCH]) / 0.25
    torch.testing.assert_close(result.gradient, expected)


def test_nested_subsampled_plates_multiply():
    data = Y.reshape(4, 5)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4, subsample_size=2, dim=-2) as i:
            with pyro.plate("columns", 5, subsample_size=1, dim=-1) as j:
                pyro.sample("y", dist.Normal(mu, 1.0), obs=data[i][:, j])

    structure = inspect_model(model, (), {}, adapt=False)
    indices = {"rows": torch.tensor([3, 1]), "columns": torch.tensor([2])}
    result = Likelihood(model, structure).evaluate(
        torch.tensor([0.5]), {}, Batch(Arguments((), {}), indices)
    )
    # d/dmu log N(y; mu, 1) = y - mu, (4 / 2) (5 / 1) times
    expected = 10.0 * (data[3, 2] + data[1, 2] - 2 * 0.5)
    torch.testing.assert_close(result.gradient, expected.reshape(1))


def test_sequential_subsampled_plates():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", N, subsample_size=4):
            pyro.sample(f"y{i}", dist.Normal(mu, 1.0), obs=Y[i])

    structure = inspect_model(model, (), {}, adapt=False)
    likelihood = Likelihood(model, structure)
    indices = torch.tensor([19, 0, 7, 2])
    result = likelihood.evaluate(
        torch.tensor([0.5]), {}, Batch(Arguments((), {}), {"data": indices})
    )
    torch.testing.assert_close(result.gradient[0], N / 4 * (Y[indices] - 0.5).sum())


def test_a_subsample_of_the_models_own_is_left_alone():
    chosen = torch.tensor([7, 2, 11, 3])
    structure = inspect_model(given_subsample, (), {}, adapt=False)
    result = Likelihood(given_subsample, structure).evaluate(
        torch.zeros(P), {}, Batch(Arguments((), {}), {})
    )
    torch.testing.assert_close(result.gradient, N / 4 * Y[chosen] @ X[chosen] / 0.25)


# What a pass does and does not do


def test_a_pass_runs_the_model_once_and_no_prior():
    calls, scored = [], []

    class Noted(dist.Normal):
        def log_prob(self, value):
            scored.append(value)
            return super().log_prob(value)

    def model():
        calls.append(1)
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([P]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", Noted(X @ w, 1.0), obs=Y)

    structure = inspect_model(model, (), {}, adapt=True)
    calls.clear(), scored.clear()
    Likelihood(model, structure).evaluate(torch.zeros(P), {}, whole_batch(structure))
    assert len(calls) == 1 and len(scored) == 1 and scored[0] is not None
    assert torch.equal(scored[0], Y)


def test_gradients_of_learnable_parameters_are_left_alone():
    offset = torch.zeros((), requires_grad=True)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + offset, 1.0), obs=Y[0])

    structure = inspect_model(model, (), {}, adapt=False)
    result = Likelihood(model, structure).evaluate(torch.zeros(1), {}, Batch(Arguments((), {}), {}))
    torch.testing.assert_close(result.gradient, Y[:1])
    assert offset.grad is None
    assert not result.gradient.requires_grad and not result.log_density.requires_grad


def test_a_gradient_with_respect_to_weights_that_no_datum_depends_on_is_zero():
    scale = torch.ones((), requires_grad=True)

    def model():
        pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=Y[0])

    structure = inspect_model(model, (), {}, adapt=False)
    result = Likelihood(model, structure).evaluate(torch.ones(1), {}, Batch(Arguments((), {}), {}))
    assert result.gradient == 0.0


def test_distributions_of_fixed_numbers_are_made_once():
    made = []

    def model(last):
        own = [
            dist.Gamma(2.0, 1.0),
            dist.Normal(0.0, 1.0),
            dist.Normal(0, 1, validate_args=False),
            dist.Normal(torch.zeros(()), 1.0),
            Own(0.0, 1.0),
            dist.Normal(0.0, last),
        ]
        made.append(own)
        w = pyro.sample("w", own[1])
        pyro.sample("y", dist.Normal(w, 1.0), obs=Y[0])

    class Own(dist.Normal):
        """Not one of Pyro's, so its constructor may do anything."""

    structure = inspect_model(model, (1.0,), {}, adapt=False)
    likelihood = Likelihood(model, structure)
    made.clear()
    for last in (1.0, 1.0, 2.0):
        batch = Batch(Arguments((last,), {}), {})
        likelihood.evaluate(torch.zeros(1), {}, batch)
    first, second, third = made

    def are_shared(one, other):
        return one.mean is other.mean or one.__dict__.get("loc") is other.__dict__.get("loc")

    pairs = zip(first[1:], second[1:], strict=True)
    assert [are_shared(a, b) for a, b in pairs] == [True, True, False, False, True]
    assert first[0].concentration is second[0].concentration
    assert are_shared(first[1], first[5]) and not are_shared(first[5], third[5])
    assert third[5].scale == 2.0 and first[1] is not first[5]
    assert not are_shared(first[2], first[1]) and not first[2]._validate_args
    assert not COERCIONS


def test_a_model_may_change_the_distributions_that_it_makes():
    def model():
        moved, plain = dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0)
        w = pyro.sample("w", plain)
        moved.loc = w
        pyro.sample("y", moved, obs=Y[0])
        shifted = dist.Normal(2.0, 1.0)
        assert shifted.loc == 2.0 and plain.loc == 0.0
        shifted.loc += 1.0
        pyro.sample("z", shifted, obs=w)

    structure = inspect_model(model, (), {}, adapt=False)
    likelihood, batch = Likelihood(model, structure), Batch(Arguments((), {}), {})
    for _ in range(3):
        gradient = likelihood.evaluate(torch.zeros(1), {}, batch).gradient
        torch.testing.assert_close(gradient, Y[:1] + 3.0)


def test_kept_distributions_are_of_no_transform_and_of_the_default_dtype():
    seen = []

    def model():
        prior = dist.Normal(0.0, 1.0)
        slope = torch.func.grad(lambda x: dist.Normal(0.0, 3.0).log_prob(x))
        with torch.inference_mode():
            dist.Normal(0.0, 4.0)
        w = pyro.sample("w", prior)
        seen.append((prior, slope(torch.tensor(1.0))))
        loc = w * dist.Normal(0.0, 4.0).scale
        pyro.sample("y", dist.Normal(loc, 1.0), obs=Y[0])

    structure = inspect_model(model, (), {}, adapt=False)
    likelihood, batch = Likelihood(model, structure), Batch(Arguments((), {}), {})
    seen.clear()
    for dtype in (torch.float64, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        gradient = likelihood.evaluate(torch.zeros(1, dtype=torch.float64), {}, batch).gradient
        torch.testing.assert_close(gradient, 4.0 * Y[:1])
    priors, slopes = zip(*seen, strict=True)
    assert priors[0].loc is priors[1].loc and priors[2].loc is not priors[1].loc
    assert priors[2].loc.dtype == torch.float32
    assert all(abs(float(slope) + 1.0 / 9.0) < 1e-6 for slope in slopes)


def test_a_number_that_is_not_allowed_is_refused_at_every_step():
    scale = [1.0]

    def model():
        w = pyro.sample("w", dist.Normal(0.0, scale[0]))
        pyro.sample("y", dist.Normal(w, 1.0), obs=Y[0])

    structure = inspect_model(model, (), {}, adapt=False)
    likelihood, batch = Likelihood(model, structure), Batch(Arguments((), {}), {})
    likelihood.evaluate(torch.zeros(1), {}, batch)
    scale[0] = -1.0
    for _ in range(2):
        with pytest.raises(ValueError, match="Normal|scale"):
            likelihood.evaluate(torch.zeros(1), {}, batch)
    assert not COERCIONS
    with pyro.validation_enabled(False):
        likelihood.evaluate(torch.zeros(1), {}, batch)
    with pytest.raises(ValueError, match="Normal|scale"):
        likelihood.evaluate(torch.zeros(1), {}, batch)
