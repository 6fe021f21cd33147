# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Parameters that nothing learns get one warning, with the line that samples each."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from many_chains import run_together
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

import pyro_aeb as aeb

N = 100
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, generator=generator)
Y = 3.0 + (X + 1.0) + 0.1 * torch.randn(N, generator=generator)


@pytest.fixture(autouse=True)
def clear():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def observe(mean, scale=0.1):
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(mean, scale), obs=Y)


def normal(name, scale=3.0):
    return pyro.sample(name, dist.Normal(0.0, scale))


def warnings_of(model) -> list[str]:
    kernel = aeb.AEBKernel(model, aeb.SGLD(1e-5), seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel.setup(0)
    messages = [str(warning.message) for warning in caught]
    return [message for message in messages if "not learned" in message]


@pytest.mark.parametrize(
    "start, constraint, line",
    [
        (torch.tensor(0.0), constraints.real, 'a = pyro.sample("a", dist.Normal(0.0, 1.0))'),
        (torch.tensor(5.0), constraints.positive, 'a = pyro.sample("a", dist.LogNormal(0.0, 1.0))'),
        (
            torch.ones(3) / 3.0,
            constraints.simplex,
            'a = pyro.sample("a", dist.Dirichlet(torch.ones(3)))',
        ),
        (
            torch.ones(2, 3) / 2.0,
            constraints.unit_interval,
            'a = pyro.sample("a", dist.Beta(torch.ones(2, 3), 1.0).to_event(2))',
        ),
        (torch.tensor(3.0), constraints.greater_than(2.0), "a = pyro.sample('a', ...)"),
    ],
    ids=["real", "positive", "simplex", "unit interval", "other"],
)
def test_a_param_is_said_to_stay_with_the_site_in_its_place(start, constraint, line):
    def model():
        a = pyro.param("a", start, constraint=constraint)
        observe(a.sum() + normal("b") * (X + 1.0))

    (message,) = warnings_of(model)
    assert "['a']" in message and "stay at their values" in message and line in message


def test_a_module_is_said_to_stay():
    net = nn.Linear(1, 1)

    def model():
        pyro.module("net", net)
        observe(net(X[:, None])[:, 0] + normal("b"))

    (message,) = warnings_of(model)
    assert "['net']" in message and "net = aeb.nn.bayesianize(net, ...)" in message


def test_parameters_of_a_pyro_module_are_said_to_stay():
    class Line(PyroModule):
        def __init__(self):
            super().__init__()
            self.slope = PyroSample(dist.Normal(0.0, 1.0))
            self.level = PyroParam(torch.tensor(1.0), constraints.positive)

        def forward(self):
            observe(self.level + self.slope * X)

    (message,) = warnings_of(Line())
    assert "['level']" in message and "level = pyro.sample(" in message


def test_what_is_fixed_on_purpose_gets_no_warning():
    frozen = nn.Linear(1, 1).requires_grad_(False)
    net = aeb.nn.bayesianize(nn.Linear(1, 1), sparse=[], delta=0.5, sigma2=1.0)

    def model():
        pyro.module("frozen", frozen)
        observe(frozen(X[:, None])[:, 0] + net(X[:, None])[:, 0])

    assert warnings_of(model) == []


def test_the_line_of_the_warning_learns_the_values_of_least_squares():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand(()))
        observe(a + normal("b") * (X + 1.0))

    draws = run_together(model, aeb.transitions.HMC(5e-5, 12), 200, 100)
    design = torch.stack([torch.ones(N), X + 1.0], 1).double()
    precision = design.T @ design / 0.01 + torch.diag(torch.tensor([1.0, 1.0 / 9.0]).double())
    exact = torch.linalg.solve(precision, design.T @ Y.double() / 0.01)
    found = torch.stack([draws["a"].mean(), draws["b"].mean()]).double()
    assert ((found - exact).abs() < 0.02).all()
