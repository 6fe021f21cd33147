# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Outputs and labels of shapes that do not go together: the error names the cure that fits."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from refusals import raises_with
from small_runs import make_kernel

import pyro_aeb as aeb

N, K = 12, 3
OUTPUTS = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(N) % K
ONE_HOT = torch.eye(K)[CLASSES]


def normal(outputs):
    return dist.Normal(outputs, 1.0)


CASES = {
    "a column beside a column": (
        lambda o: normal(o[:, :1]),
        torch.zeros(N, 1),
        ".squeeze(-1), or",
        lambda o: normal(o[:, :1].squeeze(-1)),
        torch.zeros(N),
    ),
    "a column beside a vector": (
        lambda o: normal(o[:, :1]),
        torch.zeros(N),
        ".squeeze(-1), or",
        lambda o: normal(o[:, 0]),
        torch.zeros(N),
    ),
    "logits as a column": (
        lambda o: dist.Bernoulli(logits=o[:, :1]),
        torch.zeros(N, 1),
        ".to_event(1)",
        lambda o: dist.Bernoulli(logits=o[:, :1]).to_event(1),
        torch.zeros(N, 1),
    ),
    "several outputs": (
        normal,
        OUTPUTS,
        ".to_event(1)",
        lambda o: normal(o).to_event(1),
        OUTPUTS,
    ),
    "several labels": (
        lambda o: dist.Bernoulli(logits=o),
        ONE_HOT,
        ".to_event(1)",
        lambda o: dist.Bernoulli(logits=o).to_event(1),
        ONE_HOT,
    ),
    "one-hot labels": (
        lambda o: dist.Categorical(logits=o),
        ONE_HOT,
        "y.argmax(-1)",
        lambda o: dist.Categorical(logits=o),
        ONE_HOT.argmax(-1),
    ),
    "one-hot labels of integers": (
        lambda o: dist.Categorical(probs=o.softmax(-1)),
        ONE_HOT.long(),
        "y.argmax(-1)",
        lambda o: dist.Categorical(probs=o.softmax(-1)),
        CLASSES,
    ),
}


def start(likelihood, y):
    def model(outputs, y):
        scale = pyro.sample("scale", dist.Normal(1.0, 0.1))
        with pyro.plate("data", N):
            pyro.sample("y", likelihood(scale * outputs), obs=y)

    make_kernel(model, aeb.SGLD(1e-4), adaptation=None).setup(0, OUTPUTS, y)


@pytest.mark.parametrize("name", CASES)
def test_the_cure_fits(name):
    likelihood, y, cure, cured_likelihood, cured_y = CASES[name]
    with raises_with("expected", cure):
        start(likelihood, y)
    start(cured_likelihood, cured_y)


def test_data_that_are_not_indexed():
    def model(outputs, y):
        scale = pyro.sample("scale", dist.Normal(1.0, 0.1))
        with pyro.plate("data", N, subsample_size=5):
            pyro.sample("y", normal(scale * outputs[:, 0]), obs=y)

    with raises_with("inside plate('data')", "index the data with the plate's indices"):
        make_kernel(model, aeb.SGLD(1e-4), adaptation=None).setup(0, OUTPUTS, torch.zeros(N))
