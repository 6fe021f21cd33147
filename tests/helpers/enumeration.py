# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior of all models of a linear regression with two columns that are the same."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_aeb import priors

V0, V1, DELTA, SIGMA = 0.002, 0.5, 0.2, 1.0
RNG = np.random.default_rng(3)
X = RNG.standard_normal((30, 4))
X[:, 2] = X[:, 1]
Y = 0.5 * X[:, 0] + 0.6 * X[:, 1] + SIGMA * RNG.standard_normal(30)


def model(x, y):
    prior = priors.SpikeAndSlabNormal(V0, V1, DELTA, SIGMA)
    beta = pyro.sample("beta", prior.expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, SIGMA), obs=y)


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(X), torch.from_numpy(Y)


def enumerate_models() -> tuple[np.ndarray, np.ndarray]:
    """Return all models, shape (2^p, p), and their posterior probabilities."""
    models = np.array(list(itertools.product([False, True], repeat=X.shape[1])))
    logs = []
    for gamma in models:
        variance = SIGMA**2 * (np.eye(len(Y)) + (X * np.where(gamma, V1, V0)) @ X.T)
        evidence = np.linalg.slogdet(variance)[1] + Y @ np.linalg.solve(variance, Y)
        logs.append(np.log(np.where(gamma, DELTA, 1.0 - DELTA)).sum() - 0.5 * evidence)
    weights = np.exp(np.array(logs) - max(logs))
    return models, weights / weights.sum()
