# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The example in the contract runs as it is written, and has the documented law."""

from __future__ import annotations

import re
import sys
import textwrap
from types import ModuleType

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from torch import Tensor

import pyro_aeb as aeb
from pyro_aeb.testing import check_transition, sgld_variance
from pyro_aeb.testing.monte_carlo import assert_agrees, assert_tells_apart, batch_means
from pyro_aeb.transitions import base

DATA = torch.linspace(-1.0, 3.0, 19)
PRECISION = len(DATA) + 1.0


def model(data: Tensor) -> None:
    """Mean of unit normals with a standard normal prior; the posterior has precision N + 1."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=data)


@pytest.fixture
def example(monkeypatch) -> ModuleType:
    """The example of the module's docstring, run as it is written."""
    (block,) = re.findall(r"::\n\n(.*?)\n\n(?=\S)", base.__doc__, re.DOTALL)
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    module.__dict__["model"] = model
    exec(textwrap.dedent(block), module.__dict__)
    return module


def test_the_example_samples_a_gaussian_exactly(example):
    pyro.set_rng_seed(0)
    mcmc = MCMC(example.kernel, num_samples=4000, warmup_steps=100, disable_progbar=True)
    mcmc.run(DATA)
    mean = mcmc.get_samples()["mean"].double()
    expected = float(DATA.sum()) / PRECISION
    estimate, error = batch_means(mean)
    assert_agrees(estimate, expected, error)
    estimate, error = batch_means((mean - expected).square())
    assert_agrees(estimate, 1.0 / PRECISION, error)
    sgld = sgld_variance(example.kernel.transition.step_size(1), 1.0, PRECISION)
    assert sgld == pytest.approx(2.0 / PRECISION)
    assert_tells_apart(estimate, sgld, error)


def test_the_example_is_a_transition(example):
    report = check_transition(example.AveragedNoise(aeb.Constant(1.0)))
    assert "exact" in report["stationary covariance"].result
