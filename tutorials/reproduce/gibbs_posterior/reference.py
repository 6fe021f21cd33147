# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Exact inclusion probabilities of a logistic regression with a spike-and-slab prior."""

from __future__ import annotations

import numpy as np
from calibration.exact import Array
from scipy import stats

NODES = {"spike": 60, "slab": 240}
"""Equal shares of a component's prior mass, at whose middle a weight may lie."""


def inclusion(
    x: Array,
    y: Array,
    v0: float,
    v1: float,
    delta: float,
    *,
    chains: int,
    sweeps: int,
    warmup: int,
    seed: int,
) -> Array:
    """
    P(gamma_j = 1) by Gibbs sampling of (gamma_j, beta_j) from their conditional laws, on a fine
    grid, at sigma = 1. The mean over sweeps of the probability that each gamma is drawn with.
    """
    rng = np.random.default_rng(seed)
    shares = {name: (np.arange(size) + 0.5) / size for name, size in NODES.items()}
    spike = v0 * stats.laplace.ppf(shares["spike"])
    slab = np.sqrt(v1) * stats.norm.ppf(shares["slab"])
    grid = np.concatenate([spike, slab])
    prior = np.log([(1 - delta) / len(spike)] * len(spike) + [delta / len(slab)] * len(slab))
    beta = np.zeros((chains, x.shape[1]))
    total = np.zeros(x.shape[1])
    for sweep in range(warmup + sweeps):
        for j in rng.permutation(x.shape[1]):
            rest = beta @ x.T - np.outer(beta[:, j], x[:, j])
            mean = rest[:, None, :] + grid[:, None] * x[:, j]
            log = prior + mean @ y - np.logaddexp(0.0, mean).sum(-1)
            mass = np.exp(log - log.max(1, keepdims=True))
            mass /= mass.sum(1, keepdims=True)
            if sweep >= warmup:
                total[j] += mass[:, len(spike) :].sum(1).mean()
            below = mass.cumsum(1) < rng.uniform(size=(chains, 1))
            beta[:, j] = grid[np.minimum(below.sum(1), len(grid) - 1)]
    return total / sweeps
