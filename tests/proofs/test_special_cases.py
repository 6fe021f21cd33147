# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Proof 4. The kernel is Algorithm 1, step by step. ``by_hand`` below is a plain loop, written from
the equations, one layer at a time; with omega = 1 it is EM, in which every latent is the solution
of its equation at the last draw of the weights. With omega = 0 the kernel is SGLD or SGHMC with
fixed penalties, bit by bit.
"""

import math
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

from pyro_aeb import (
    SGHMC,
    SGLD,
    SSGL,
    AEBKernel,
    Constant,
    Geometric,
    Polynomial,
    StochasticApproximation,
)

STEPS = 30


def batches_and_noise(seed, size, batch, weights):
    """Yield the kernel's draws from torch's generator: a permutation per epoch, and the noise."""
    torch.manual_seed(seed)
    while True:
        permutation = torch.randperm(size)
        for start in range(0, size - batch + 1, batch):
            yield permutation[start : start + batch], torch.randn(weights)


def start_kernel(kernel, data):
    """Start the kernel and return its first values."""
    kernel.setup(0, *data)
    return kernel.initial_params


# -- omega = 1 is EM, and any other omega the average of equation (8) ------------------------------

N, BATCH = 14, 4
NU, LAMBDA = 3.0, 0.8  # sigma^2 ~ InverseGamma(nu / 2, nu lambda / 2)
A, B = 2.0, 3.0  # delta ~ Beta(a, b)


@dataclass
class Layer:
    """An SSGL site: the place of its weights, and its parameters."""

    where: slice
    v0: float
    v1: float
    delta: float = 0.5
    rho: torch.Tensor = field(init=False)
    kappa0: torch.Tensor = field(init=False)
    kappa1: torch.Tensor = field(init=False)

    def start(self, inclusion, penalty):
        size = self.where.stop - self.where.start
        self.rho = torch.full((size,), inclusion)
        self.kappa0 = torch.full((size,), penalty or (1 - inclusion) / self.v0)
        self.kappa1 = torch.full((size,), penalty or inclusion / self.v1)


class Regression:
    """y ~ N(x beta + intercept, (2 sigma)^2): sigma is in the prior and in the noise."""

    def data(self):
        return torch.randn(N, 5), torch.randn(N)

    def model(self, x, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(NU / 2, NU * LAMBDA / 2))
        delta = pyro.sample("delta", dist.Beta(A, B))
        with pyro.plate("features", 5):
            beta = pyro.sample("beta", SSGL(0.3, 2.0, delta, sigma2.sqrt()))
        intercept = pyro.sample("intercept", dist.Normal(0.5, 1.5))
        with pyro.plate("data", N, subsample_size=BATCH) as i:
            y_i = dist.Normal(x[i] @ beta + intercept, 2.0 * sigma2.sqrt())
            pyro.sample("y", y_i, obs=y[i])

    layers = {"delta": Layer(slice(0, 5), 0.3, 2.0)}
    scale_of_the_noise = 2.0

    def gradient(self, w, i, sigma, x, y):
        """Return the gradient: N/n times the sum over the data, plus the intercept's prior."""
        error = y[i] - x[i] @ w[:5] - w[5]
        by_weight = torch.cat([error @ x[i], error.sum().reshape(1)]) / (2.0 * sigma) ** 2
        prior = torch.cat([torch.zeros(5), (0.5 - w[5:]) / 1.5**2])
        return N / BATCH * by_weight + prior

    def squares(self, w, i, x, y):
        """Return I of equation (6)."""
        return N / BATCH * ((y[i] - x[i] @ w[:5] - w[5]) / 2.0).square().sum()


class Classification:
    """Two layers with a delta each; in (6) only the prior matters: logits x beta + z gamma."""

    def data(self):
        return torch.randn(N, 3), torch.randn(N, 2), torch.randint(2, (N,)).double()

    def model(self, x, z, y):
        sigma2 = pyro.sample("sigma2", dist.InverseGamma(NU / 2, NU * LAMBDA / 2))
        first = pyro.sample("first", dist.Beta(A, B))
        second = pyro.sample("second", dist.Beta(A, B))
        beta = pyro.sample("beta", SSGL(0.3, 2.0, first, sigma2.sqrt()).expand([3]).to_event(1))
        gamma = pyro.sample("gamma", SSGL(1.0, 0.1, second, sigma2.sqrt()).expand([2]).to_event(1))
        with pyro.plate("data", N, subsample_size=BATCH) as i:
            pyro.sample("y", dist.Bernoulli(logits=x[i] @ beta + z[i] @ gamma), obs=y[i])

    layers = {"first": Layer(slice(0, 3), 0.3, 2.0), "second": Layer(slice(3, 5), 1.0, 0.1)}

    def gradient(self, w, i, sigma, x, z, y):
        features = torch.cat([x, z], dim=1)[i]
        return N / BATCH * ((y[i] - torch.sigmoid(features @ w)) @ features)

    squares = None


def by_hand(case, data, w, start, transition, omega, tau, seed):
    """Run Algorithm 1 as on the page of the method, and yield the state after every step."""
    layers, sigma = case.layers, start["sigma2"].sqrt()
    p = sum(layer.where.stop - layer.where.start for layer in layers.values())
    v = torch.zeros_like(w)
    draws = batches_and_noise(seed, N, BATCH, len(w))
    for k in range(1, STEPS + 1):
        i, z = next(draws)
        o, step_size = omega(k), transition.step_size(k)
        # (2)
        gradient = case.gradient(w, i, sigma, *data)
        for layer in layers.values():
            beta = w[layer.where]
            gradient[layer.where] -= layer.kappa0 * beta.sign() / sigma
            gradient[layer.where] -= layer.kappa1 * beta / sigma**2
        squares = case.squares(w, i, *data) if case.squares else 0.0  # at beta^(k)
        # (3a), (3b)
        if isinstance(transition, SGLD):
            w = w + step_size * gradient + math.sqrt(2 * step_size / tau(k)) * z
        else:
            alpha, b = transition.friction, transition.gradient_noise
            v = (1 - alpha) * v + step_size * gradient
            v = v + math.sqrt(2 * step_size * (alpha - b) / tau(k)) * z
            w = w + v
        # (4), (5) and (8)
        for layer in layers.values():
            beta = w[layer.where]
            gaussian = dist.Normal(0.0, sigma * math.sqrt(layer.v1)).log_prob(beta).exp()
            laplace = dist.Laplace(0.0, sigma * layer.v0).log_prob(beta).exp()
            slab, spike = layer.delta * gaussian, (1 - layer.delta) * laplace
            layer.rho = (1 - o) * layer.rho + o * slab / (slab + spike)
            layer.kappa0 = (1 - o) * layer.kappa0 + o * (1 - layer.rho) / layer.v0
            layer.kappa1 = (1 - o) * layer.kappa1 + o * layer.rho / layer.v1
        # (6) and (8)
        absolute = sum((y.kappa0 * w[y.where].abs()).sum() for y in layers.values())
        a = p + NU + 2 + (N if case.squares else 0)
        c = sum((y.kappa1 * w[y.where].square()).sum() for y in layers.values())
        c = c + squares + NU * LAMBDA
        new = (absolute + (absolute**2 + 4 * a * c).sqrt()) / (2 * a)
        sigma = (1 - o) * sigma + o * new
        # (7) and (8)
        for layer in layers.values():
            new = (layer.rho.sum() + A - 1) / (A + B + len(layer.rho) - 2)
            layer.delta = (1 - o) * layer.delta + o * new
        yield w, sigma


@pytest.mark.parametrize(
    ("omega", "penalty"),
    [
        (Constant(1.0), None),
        (Constant(1.0), 0.7),
        (Polynomial(1.0, power=0.75), None),
        (Polynomial(3.0, offset=5.0), 0.7),
        (Constant(0.1), 0.7),
    ],
    ids=["EM", "EM from a penalty", "k^-0.75", "3/(5+k) from a penalty", "0.1 from a penalty"],
)
@pytest.mark.parametrize(
    "transition",
    [SGLD(Polynomial(0.02, power=1 / 3)), SGHMC(0.01, friction=0.3, gradient_noise=0.05)],
    ids=["SGLD", "SGHMC"],
)
@pytest.mark.parametrize("case", [Regression(), Classification()], ids=lambda c: type(c).__name__)
def test_the_kernel_is_algorithm_1_step_by_step(case, transition, omega, penalty, compile):
    torch.set_default_dtype(torch.float64)
    data, tau = case.data(), Geometric(0.5, 1.1)
    kernel = AEBKernel(
        case.model,
        transition,
        StochasticApproximation(omega, initial_inclusion=0.3, initial_penalty=penalty),
        inverse_temperature=tau,
        compile=compile,
    )
    params = start = start_kernel(kernel, data)
    for name, layer in case.layers.items():
        layer.start(0.3, penalty)
        layer.delta = start[name]
    w = kernel.chain.state.position.clone()
    expected = list(by_hand(case, data, w, start, transition, omega, tau, seed=9))
    torch.manual_seed(9)
    for w, sigma in expected:
        params = kernel.sample(params)
        assert_equal_to_rounding(kernel.chain.state.position, w)
        assert_equal_to_rounding(kernel.latents.sigma, sigma.reshape(1))
        assert_equal_to_rounding(params["sigma2"], sigma.square())
    # The layers by hand hold the last values of the rest.
    layers = case.layers.values()
    assert_equal_to_rounding(kernel.latents.rho, torch.cat([layer.rho for layer in layers]))
    assert_equal_to_rounding(kernel.latents.delta, torch.stack([layer.delta for layer in layers]))
    for name, layer in case.layers.items():
        assert_equal_to_rounding(params[name], layer.delta)


def assert_equal_to_rounding(found, expected):
    """Require equality up to rounding in float64, which 30 steps may amplify."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# -- omega = 0 is plain SGLD and SGHMC, bit by bit -------------------------------------------------
#
# Every factor below is a power of two, so that products by it are exact, and one rounding of a
# fused multiply-add is that of the separate operations: nothing but the equations decides the bits.

ROWS, WEIGHTS = 16, 40  # with batches of 4, N/n = 4
SIGMA, MINIBATCH = 2.0, 4


def sparse_regression(x, y):
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(1.0, 1.0))
    delta = pyro.sample("delta", dist.Beta(2.0, 2.0))
    with pyro.plate("features", WEIGHTS):
        beta = pyro.sample("beta", SSGL(0.125, 8.0, delta, sigma2.sqrt()))
    with pyro.plate("data", ROWS, subsample_size=MINIBATCH) as i:
        pyro.sample("y", dist.Normal(x[i] @ beta, sigma2.sqrt()), obs=y[i])


def dense_regression(x, y):
    with pyro.plate("features", WEIGHTS):
        beta = pyro.sample("beta", dist.Normal(0.0, 0.5))
    with pyro.plate("data", ROWS, subsample_size=MINIBATCH) as i:
        pyro.sample("y", dist.Normal(x[i] @ beta, SIGMA), obs=y[i])


def plain_chain(x, y, beta, prior_gradient, transition, tau, seed):
    """Run plain SGLD or SGHMC."""
    draws = batches_and_noise(seed, ROWS, MINIBATCH, WEIGHTS)
    step_size, momentum = transition.step_size(1), torch.zeros_like(beta)
    for _ in range(STEPS):
        i, noise = next(draws)
        error = y[i] - x[i] @ beta
        gradient = x[i].T @ (error / SIGMA**2 * (ROWS / MINIBATCH)) + prior_gradient(beta)
        if isinstance(transition, SGLD):
            move = step_size * gradient
            beta = beta + move + math.sqrt(2 * step_size / tau) * noise
        else:
            alpha = transition.friction
            momentum = (1 - alpha) * momentum + step_size * gradient
            momentum = momentum + math.sqrt(2 * step_size * alpha / tau) * noise
            beta = beta + momentum
        yield beta


# (kappa0, kappa1) from equation (5) with rho = 1/2, v0 = 1/8, v1 = 8; and both 4, as given.
PENALTIES = {None: (4.0, 0.0625), 4.0: (4.0, 4.0)}
TRANSITIONS = [SGLD(2.0**-9), SGHMC(2.0**-10, friction=0.5)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=["equation (5)", "given penalty"])
@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("transition", TRANSITIONS, ids=["SGLD", "SGHMC"])
def test_weight_zero_is_plain_sampling_bit_by_bit(transition, tau, penalty):
    data = torch.randn(ROWS, WEIGHTS), torch.randn(ROWS)
    kernel = AEBKernel(
        sparse_regression,
        transition,
        StochasticApproximation(0.0, initial_penalty=penalty),
        inverse_temperature=tau,
        init_strategy=init_to_value(
            values={
                "sigma2": torch.tensor(SIGMA**2),
                "delta": torch.tensor(0.25),
                "beta": torch.randn(WEIGHTS),
            }
        ),
    )
    params = start_kernel(kernel, data)
    first = kernel.latents
    kappa0, kappa1 = PENALTIES[penalty]

    def prior_gradient(beta):
        return -(kappa0 * beta.sign() / SIGMA + kappa1 * beta / SIGMA**2)

    expected = list(plain_chain(*data, params["beta"], prior_gradient, transition, tau, seed=4))
    torch.manual_seed(4)
    for beta in expected:
        params = kernel.sample(params)
        assert torch.equal(params["beta"], beta)
    assert beta.isfinite().all() and (beta - expected[0]).abs().min() > 0.0
    for name, value in kernel.latents._asdict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(getattr(first, name)))
    assert params["sigma2"] == SIGMA**2 and params["delta"] == 0.25


@pytest.mark.parametrize("transition", TRANSITIONS, ids=["SGLD", "SGHMC"])
def test_no_adaptation_is_plain_sampling_bit_by_bit(transition):
    data = torch.randn(ROWS, WEIGHTS), torch.randn(ROWS)
    kernel = AEBKernel(dense_regression, transition, inverse_temperature=4.0)
    params = start_kernel(kernel, data)
    expected = list(
        plain_chain(*data, params["beta"], lambda b: -b / 0.5**2, transition, 4.0, seed=4)
    )
    torch.manual_seed(4)
    for beta in expected:
        params = kernel.sample(params)
        assert torch.equal(params["beta"], beta)
