# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Parts of models with links between their sites, and the inspection of such models."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
from models import linear_data
from refusals import count_refusal

from pyro_aeb import SSGL, ModelError
from pyro_aeb.model.inspection import inspect_model

X, Y = linear_data()
N = len(X)


def inspect(model, *args, links=None, adapt=True):
    return inspect_model(model, args, {}, adapt=adapt, links=links)


def refusal_message(model, *args, **options) -> str:
    """Return the message of the error that a model raises."""
    with pytest.raises(ModelError) as info:
        inspect(model, *args, **options)
    count_refusal(info.value)
    return str(info.value)


def sample_latents():
    """Sample an InverseGamma(1.5, 2) and a Beta(2, 3) site."""
    return (
        pyro.sample("sigma2", dist.InverseGamma(1.5, 2.0)),
        pyro.sample("delta", dist.Beta(2.0, 3.0)),
    )


def ssgl_prior(delta, sigma):
    return SSGL(v0=0.1, v1=10.0, delta=delta, sigma=sigma)


def observe(mean, scale, name="y"):
    with pyro.plate(f"data_{name}", N):
        pyro.sample(name, dist.Normal(mean, scale), obs=Y)
