# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The hidden Markov model without Monte Carlo: forward-backward, and EM by it.

Sequences of two states. The first state is either with probability 1/2; the next follows a row of
the transition matrix; an observation is Normal(mean of the state, variance). The means have a
Normal prior and are integrated out by Gauss-Hermite quadrature; transition and variance are where
EM leads. All in NumPy and float64; nothing here knows the kernel.

**References**

[1] L. R. Rabiner (1989), "A tutorial on hidden Markov models and selected applications in speech
    recognition", Proceedings of the IEEE 77.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

Array = Any
NODES = 5  # of the quadrature, along each axis


class Priors(NamedTuple):
    """
    :param Array centre: of the means, shape (2,); their standard deviation is 1.
    :param float concentration: of the Dirichlet of every row of the transition matrix.
    :param float shape: of the InverseGamma of the variance.
    :param float rate: of it.
    """

    centre: Array
    concentration: float
    shape: float
    rate: float


class Parameters(NamedTuple):
    """
    :param Array transition: rows sum to 1, shape (2, 2).
    :param float variance: of the observations.
    """

    transition: Array
    variance: float


class Expected(NamedTuple):
    """
    Expected statistics given all observations, summed over sequences, for each of G values of
    the means.

    :param log_likelihood: shape (G,).
    :param pairs: expected numbers of transitions, shape (G, 2, 2).
    :param square: expected squared distances from the state's mean, shape (G,).
    :param states: expected numbers of visits, shape (G, 2).
    :param totals: expected sums of observations in each state, shape (G, 2).
    """

    log_likelihood: Array
    pairs: Array
    square: Array
    states: Array
    totals: Array


class Quadrature(NamedTuple):
    """
    The means' law given parameters.

    :param nodes: shape (G, 2).
    :param weights: that sum to 1, shape (G,).
    """

    nodes: Array
    weights: Array

    def mean(self) -> Array:
        """Shape (2,)."""
        return self.weights @ self.nodes

    def sd(self) -> Array:
        """Shape (2,)."""
        return np.sqrt(self.weights @ (self.nodes - self.mean()) ** 2)


def forward_backward(y: Array, means: Array, parameters: Parameters) -> Expected:
    """
    :param y: sequences, shape (M, L).
    :param means: values to condition on, shape (G, 2).
    """
    transition, variance = parameters
    length = y.shape[1]
    distance = (y[..., None] - means[:, None, None, :]) ** 2  # (G, M, L, 2)
    emission = np.exp(-distance / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    forward, scale = np.empty_like(emission), np.empty(emission.shape[:-1])
    ahead = np.full(emission.shape[:2] + (2,), 0.5)
    for t in range(length):
        joint = ahead * emission[:, :, t]
        scale[:, :, t] = joint.sum(-1)
        forward[:, :, t] = joint / scale[:, :, t, None]
        ahead = forward[:, :, t] @ transition
    backward = np.ones_like(emission)
    pairs = np.zeros((len(means), 2, 2))
    for t in reversed(range(length - 1)):
        after = emission[:, :, t + 1] * backward[:, :, t + 1] / scale[:, :, t + 1, None]
        pairs += np.einsum("gmi,gmj->gij", forward[:, :, t], after) * transition
        backward[:, :, t] = after @ transition.T
    states = forward * backward
    return Expected(
        np.log(scale).sum((1, 2)),
        pairs,
        (states * distance).sum((1, 2, 3)),
        states.sum((1, 2)),
        (states * y[..., None]).sum((1, 2)),
    )


def log_joint(y: Array, means: Array, parameters: Parameters, priors: Priors) -> Array:
    """Return the log density of the data and the means, up to a constant, shape (G,)."""
    log_likelihood = forward_backward(y, means, parameters).log_likelihood
    return log_likelihood - ((means - priors.centre) ** 2).sum(-1) / 2


def quadrature(y: Array, parameters: Parameters, priors: Priors, near: Array) -> Quadrature:
    """
    The means' law, by Gauss-Hermite nodes around a mode, shaped by its curvature there. There is
    another mode, with the two states' names exchanged, which chains that start here never see.

    :param near: where to look for the mode, shape (2,).
    """

    def energy(means: Array) -> float:
        return -float(log_joint(y, means[None], parameters, priors)[0])

    mode = minimize(energy, near, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x
    step = 1e-3 * np.eye(2)
    shifts = [(step[i], step[j]) for i in range(2) for j in range(2)]
    curvature = np.array(
        [
            sum(s * u * energy(mode + s * i + u * j) for s in (1, -1) for u in (1, -1)) / 4e-6
            for i, j in shifts
        ]
    ).reshape(2, 2)
    root = np.linalg.cholesky(np.linalg.inv(curvature))
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    grid = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    nodes = mode + grid @ root.T
    log_weights = np.log(np.outer(weights, weights).ravel()) + (grid**2).sum(-1) / 2
    log_weights = log_weights + log_joint(y, nodes, parameters, priors)
    found = np.exp(log_weights - log_weights.max())
    return Quadrature(nodes, found / found.sum())


def m_step(y: Array, expected: Expected, weights: Array, priors: Priors) -> Parameters:
    """The maximiser of the expected log joint density."""
    pairs = np.einsum("g,gij->ij", weights, expected.pairs) + priors.concentration - 1.0
    variance = (priors.rate + weights @ expected.square / 2) / (priors.shape + 1 + y.size / 2)
    return Parameters(pairs / pairs.sum(-1, keepdims=True), float(variance))


def em(y: Array, start: Parameters, priors: Priors) -> tuple[Parameters, Quadrature]:
    """
    EM to its fixed point, means integrated out. The nodes move with the parameters.

    :returns: transition and variance, and the law of the means there.
    """
    last, near = start, priors.centre
    for _ in range(1000):
        law = quadrature(y, last, priors, near)
        near = law.mean()
        now = m_step(y, forward_backward(y, law.nodes, last), law.weights, priors)
        if _distance(now, last) < 1e-9:
            return now, law
        last = now
    raise ArithmeticError(f"EM has not come to its fixed point in 1000 sweeps: {last}")


def baum_welch(y: Array, start: Parameters, priors: Priors) -> tuple[Parameters, Array]:
    """
    EM with means that are maximised over too: Baum and Welch's algorithm with priors.

    :returns: transition and variance, and the means, shape (2,).
    """
    last, means = start, np.asarray(priors.centre, dtype=float)
    one = np.ones(1)
    for _ in range(10_000):
        expected = forward_backward(y, means[None], last)
        now = m_step(y, expected, one, priors)
        precision = expected.states[0] / last.variance + 1.0
        moved = (expected.totals[0] / last.variance + priors.centre) / precision
        if _distance(now, last) + np.abs(moved - means).max() < 1e-10:
            return now, moved
        last, means = now, moved
    raise ArithmeticError(f"EM has not come to its fixed point in 10,000 sweeps: {last}")


def _distance(one: Parameters, other: Parameters) -> float:
    moved = np.abs(one.transition - other.transition).max()
    return float(max(moved, abs(one.variance - other.variance)))


def simulate(
    sequences: int, length: int, parameters: Parameters, means: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """States and observations, both of shape (sequences, length)."""
    states = np.empty((sequences, length), dtype=int)
    states[:, 0] = rng.integers(2, size=sequences)
    for t in range(1, length):
        to_first = parameters.transition[states[:, t - 1], 0]
        states[:, t] = rng.random(sequences) >= to_first
    noise = rng.standard_normal(states.shape) * np.sqrt(parameters.variance)
    return states, np.asarray(means)[states] + noise
