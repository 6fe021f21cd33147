# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""A kernel after setup, and its draws, without MCMC."""

from __future__ import annotations

import torch
from models import linear_data, sparse_regression

from pyro_aeb import SGLD, AEBKernel, StochasticApproximation

X, Y = linear_data()
N = len(X)


def set_up_kernel(
    model=sparse_regression, *args, warmup=0, kwargs=None, transition=None, **options
):
    """Return a kernel after its setup."""
    options = {"adaptation": StochasticApproximation(0.3), "seed": 5, **options}
    kernel = AEBKernel(model, transition or SGLD(1e-3), **options)
    kernel.setup(warmup, *(args or (X, Y)), **(kwargs or {}))
    return kernel


def take_draws(kernel, number: int) -> list[dict]:
    """Take draws as MCMC does."""
    params, draws = kernel.initial_params, []
    for _ in range(number):
        params = kernel.sample(params)
        draws.append(params)
    return draws


def stack_site(draws: list[dict], name: str) -> torch.Tensor:
    return torch.stack([draw[name] for draw in draws])
