# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A gradient that does not reach a site is an error that names the site and the line that loses it;
one that is right is none, whatever the model is made of.
"""

from __future__ import annotations

import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from refusals import raises_with

import pyro_aeb as aeb
from pyro_aeb.model.inspection import inspect_model

N = 60
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, generator=generator)
T = torch.linspace(0.0, 3.0, N)
Y = 2.0 * (X > 0.5) + 0.3 * torch.randn(N, generator=generator)


def normal(name, scale=1.0):
    return pyro.sample(name, dist.Normal(0.0, scale))


def observe(mean, scale=0.3):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(mean, scale), obs=Y)


# Lost ones


def a_threshold():
    c = normal("c")
    observe(normal("b", 3.0) * (X > c))


def a_change_point_far_from_zero():
    c = pyro.sample("c", dist.Normal(50.0, 10.0))
    a, b = normal("a"), normal("b")
    observe(torch.where(30.0 * T < c, a, b))


def a_decay_of_a_float():
    c = pyro.sample("c", dist.LogNormal(0.0, 1.0))
    observe(normal("b", 3.0) * torch.exp(-float(c) * T))


def one_of_two_paths():
    c = normal("c")
    observe(c * X + normal("b") + c.detach() * T)


def a_threshold_beside_a_slope():
    c = normal("c")
    observe(c * T + normal("b") * (X > c))


def a_step_in_every_datum_of_one_density():
    c = normal("c")
    mean = normal("b") * (X > c)
    pyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=Y)


def a_rounded_number():
    c = pyro.sample("c", dist.Normal(3.0, 2.0))
    observe(normal("b") * torch.round(c) * X)


def a_straight_through_estimator():
    c = pyro.sample("c", dist.Normal(3.0, 2.0))
    observe(normal("b") * X + (torch.round(c) - c).detach() + c)


def a_remainder():
    c = pyro.sample("c", dist.Normal(3.0, 2.0))
    observe(normal("b") * X + c % 1.0)


def an_index():
    c = pyro.sample("c", dist.Uniform(0.0, N - 1.0))
    observe(normal("b") * X[c.long()] + T)


def a_branch():
    c = normal("c", 2.0)
    observe(normal("b") * X + (1.0 if c > 0 else 0.0))


def by_numpy():
    c = normal("c")
    observe(normal("b") * X + torch.as_tensor(np.exp(c.detach().numpy())))


def a_tensor_of_a_number():
    c = normal("c")
    observe(normal("b") * X + torch.tensor([float(c)] * N))


def without_gradients():
    c = normal("c")
    with torch.no_grad():
        shift = c * T
    observe(normal("b") * X + shift)


def in_a_factor():
    c = normal("c")
    pyro.factor("y", -(Y - c.item()).square().sum())


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2.0 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def a_wrong_backward():
    observe(WrongBackward.apply(normal("c")) * X)


STEPS = [
    (a_threshold, "a comparison", "X > c"),
    (a_change_point_far_from_zero, "a comparison", "< c"),
    (a_threshold_beside_a_slope, "a comparison", "X > c"),
    (a_step_in_every_datum_of_one_density, "a comparison", "X > c"),
    (a_rounded_number, "rounding", "torch.round(c)"),
    (a_straight_through_estimator, "rounding", "torch.round(c)"),
    (a_remainder, "rounding", "c % 1.0"),
    (an_index, "rounding", "c.long()"),
    (a_branch, "a comparison", "if c > 0"),
]
CONVERSIONS = [
    (a_decay_of_a_float, "float(x)", "float(c)"),
    (one_of_two_paths, "x.detach()", "c.detach()"),
    (by_numpy, "x.detach()", "np.exp"),
    (a_tensor_of_a_number, "float(x)", "float(c)"),
    (in_a_factor, "x.item()", "c.item()"),
]
UNSEEN = [without_gradients, a_wrong_backward]
START = "the distribution of site 'y' depends on site 'c' without a gradient"


@pytest.mark.parametrize("model, kind, line", STEPS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_step_is_an_error(model, kind, line):
    with raises_with(START, kind, f"of {__file__.split('/')[-1]}", line, "sigmoid", "logsumexp"):
        inspect_model(model, (), {}, adapt=False)


@pytest.mark.parametrize("model, kind, line", CONVERSIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_conversion_is_an_error(model, kind, line):
    with raises_with(START, kind, line, "pass the tensor itself"):
        inspect_model(model, (), {}, adapt=False)


@pytest.mark.parametrize("model", UNSEEN)
def test_a_loss_that_no_operation_shows_is_an_error(model):
    with raises_with(START, "no_grad", "pass the tensor itself"):
        inspect_model(model, (), {}, adapt=False)


def test_a_tensor_given_to_numpy_is_an_error():
    def model():
        observe(torch.as_tensor(np.exp(normal("c").numpy())) * X)

    with raises_with("site 'c' to NumPy", "np.exp", "compute with torch"):
        inspect_model(model, (), {}, adapt=False)


def test_a_threshold_inside_a_network_is_an_error():
    net = aeb.nn.bayesianize(torch.nn.Linear(1, 8), sparse=[], delta=0.5, sigma2=1.0)

    def model():
        hidden = torch.sign(net(X.unsqueeze(-1)))
        observe(hidden @ pyro.sample("out", dist.Normal(torch.zeros(8), 1.0).to_event(1)))

    with raises_with("site 'y' depends on site '", "the sign", "torch.sign"):
        inspect_model(model, (), {}, adapt=False)


# Right ones


def nothing_depends_on_it():
    normal("c")
    observe(normal("b") * X)


def a_relu_of_ones_own():
    h = X[:, None] * pyro.sample("w", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    observe(torch.where(h > 0.0, h, torch.zeros(())).sum(-1))


def a_relu_by_a_branch():
    c = normal("c")
    observe(X * c if c > 0 else 0.0 * X)


def a_hinge():
    c = pyro.sample("c", dist.Uniform(0.0, 3.0))
    observe(normal("a") * T + torch.where(c < T, normal("b") * (T - c), torch.zeros(())))


def a_unit_that_is_dead():
    observe(X * torch.relu(normal("c") - 5.0))


def a_kink_in_a_narrow_likelihood():
    observe(X * normal("c").abs(), 1e-3)


def a_steep_step():
    observe(torch.sigmoid((X - normal("c")) / 0.02))


def a_number_that_is_printed():
    c = normal("c")
    f"{float(c)} {c.detach().round()} {c > 0}"
    observe(c * X)


def random_numbers_of_its_own():
    observe(torch.nn.functional.dropout(normal("c") * X, 0.3))


def data_that_are_masked():
    with pyro.plate("data", N), poutine.mask(mask=Y > 0.0):
        pyro.sample("y", dist.Poisson(normal("c").exp()), obs=Y.clamp_min(0.0).round())


def a_nearly_singular_matrix():
    c = pyro.sample("c", dist.LogNormal(0.0, 1.0))
    kernel = (-0.5 * ((T[:, None] - T) / c).square()).exp() + 1e-4 * torch.eye(N)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(N), kernel), obs=torch.sin(T))


@pytest.mark.parametrize(
    "model",
    [
        nothing_depends_on_it,
        a_relu_of_ones_own,
        a_relu_by_a_branch,
        a_hinge,
        a_unit_that_is_dead,
        a_kink_in_a_narrow_likelihood,
        a_steep_step,
        a_number_that_is_printed,
        random_numbers_of_its_own,
        data_that_are_masked,
        a_nearly_singular_matrix,
    ],
)
def test_a_gradient_that_is_right_is_no_error(model):
    inspect_model(model, (), {}, adapt=False)


def test_a_threshold_summed_out_over_a_grid_has_its_posterior():
    """The cure of the message, against sums over a grid of both sites."""
    grid = torch.linspace(-3.0, 3.0, 61)
    steps = (X > grid[:, None]).float()

    def model():
        means = normal("b", 3.0) * steps
        log_density = dist.Normal(means, 0.3).log_prob(Y).sum(-1)
        prior = dist.Normal(0.0, 1.0).log_prob(grid)
        pyro.factor("y", torch.logsumexp(log_density + prior, 0))

    kernel = aeb.AEBKernel(model, aeb.transitions.HMC(2e-3, 8), seed=0)
    mcmc = MCMC(kernel, 300, 20, disable_progbar=True)
    mcmc.run()
    b = torch.linspace(-1.0, 4.0, 501)
    log_density = dist.Normal(b[:, None, None] * steps, 0.3).log_prob(Y).sum(-1)
    log_density = log_density + dist.Normal(0.0, 1.0).log_prob(grid)
    weights = (log_density.logsumexp(-1) + dist.Normal(0.0, 3.0).log_prob(b)).softmax(0)
    mean = (weights * b).sum()
    sd = (weights * (b - mean).square()).sum().sqrt()
    draws = mcmc.get_samples()["b"]
    assert abs(draws.mean() - mean) < 0.3 * sd and 0.7 < draws.std() / sd < 1.4


# The number of runs of the model


def walk(sites, calls):
    def model():
        calls.append(1)
        z = normal("z_0")
        for i in range(1, sites):
            z = pyro.sample(f"z_{i}", dist.Normal(z, 1.0))

    return model


def sums(sites, calls):
    def model():
        calls.append(1)
        total = normal("z_0")
        for i in range(1, sites):
            total = total + normal(f"z_{i}")
            pyro.sample(f"y_{i}", dist.Normal(total, 1.0), obs=torch.zeros(()))

    return model


@pytest.mark.parametrize("make", [walk, sums])
def test_the_runs_of_a_model_do_not_grow_with_its_sites(make):
    counts = []
    for sites in (10, 60):
        calls = []
        aeb.AEBKernel(make(sites, calls), aeb.SGLD(1e-4), seed=0).setup(0)
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 8


def test_a_walk_of_300_sites_is_set_up_in_two_seconds():
    times = []
    for _ in range(4):  # the best of some, on a machine that is busy
        kernel = aeb.AEBKernel(walk(300, []), aeb.SGLD(1e-4), seed=0)
        started = time.process_time()
        kernel.setup(0)
        times.append(time.process_time() - started)
    assert min(times) < 2.0


@pytest.mark.parametrize("make, density", [(walk, "z_21'"), (sums, "y_2")])
def test_one_lost_gradient_of_many_sites_is_found(make, density):
    calls = []
    model = make(60, calls)

    class Lose(poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"] == "z_20":
                msg["value"] = msg["value"].detach()

    with raises_with(f"site '{density}", "depends on site 'z_20' without a gradient", "detach"):
        inspect_model(Lose()(model), (), {}, adapt=False)
    assert len(calls) < 40
