# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A model for which quadrature computes the limit of the adaptive chain.

The data are y = X beta + noise with X^T X = N I, N rows and p columns, so that

    sum_i (y_i - x_i beta)^2 = rss + N sum_j (beta_j - b_j)^2,    b = X^T y / N,

and given the latents theta = (rho, q, sigma, delta) Q is a sum over coordinates, where q is the
average of rho that determines the penalties, kappa0 = (1 - q)/v0 and kappa1 = q/v1. Every
coordinate of SGLD is then an independent chain on the line. Its stationary law given theta is
computed on a grid of Gauss-Legendre nodes: in the limit of small steps, where it is exp(tau Q), or
for steps of finite size, as the fixed point of the transition density.

Stochastic approximation converges to the root theta* of its mean field

    h(theta) = (E rho~ - rho, rho - q, E sigma~ - sigma, delta~(rho) - delta),

with the expectation over that law. None of the package's arithmetic is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.optimize import root
from scipy.special import expit, logit
from scipy.stats import laplace, norm

from pyro_aeb.testing.linear import Array


@dataclass(frozen=True)
class Law:
    """The joint law of two consecutive states of one coordinate, on quadrature nodes."""

    nodes: Array
    one: Array
    """Probability of every node, shape (m,)."""
    two: Array | None
    """Probability of every pair (state, next state), shape (m, m); None for tiny steps."""


@dataclass(frozen=True)
class OrthogonalDesign:
    """
    Sparse linear regression with an orthogonal design, X^T X = N I.

    :param b: least squares estimates, shape (p,).
    :param float rss: residual sum of squares of least squares.
    :param int size: number N of data.
    :param float v0: Laplace scale over sigma.
    :param float v1: variance of the Gaussian component over sigma squared.
    :param beta: parameters (a, b) of delta ~ Beta(a, b).
    :param float nu: degrees of freedom of sigma^2 ~ InverseGamma(nu / 2, nu lambda / 2).
    :param float nu_lambda: nu times lambda.
    :param float tau: inverse temperature.
    :param float noise: standard deviation of the noise; None if it is sigma (regression).
    :param int nodes: number of quadrature nodes on either side of 0.
    """

    b: Array
    rss: float
    size: int
    v0: float
    v1: float
    beta: tuple[float, float]
    nu: float
    nu_lambda: float
    tau: float
    noise: float | None
    nodes: int = 40

    @property
    def p(self) -> int:
        """The number of coefficients."""
        return len(self.b)

    def split(self, theta: Array) -> tuple[Array, Array, Array, Array]:
        """Split theta, shape (2 p + 2,), into rho, q, sigma and delta."""
        p = self.p
        return theta[:p], theta[p : 2 * p], theta[2 * p], theta[2 * p + 1]

    def data(self, seed: int) -> tuple[Array, Array]:
        """Generate X and y with this b and rss."""
        generator = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(generator.standard_normal((self.size, self.p + 1)))
        x = basis[:, : self.p] * np.sqrt(self.size)
        return x, x @ self.b + np.sqrt(self.rss) * basis[:, self.p]

    # -- the stationary law

    def law(self, j: int, theta: Array, step_size: float) -> Law:
        """Compute the law of coordinate j given theta; step size 0 is the limit of small steps."""
        _, q, sigma, _ = self.split(theta)
        kappa0, kappa1 = (1 - q[j]) / self.v0, q[j] / self.v1
        precision = self.size / (self.noise or sigma) ** 2
        width = 9.0 / np.sqrt(self.tau * precision)
        shift = kappa0 / sigma / precision  # no mode is further from b than this
        low, high = self.b[j] - width - shift, self.b[j] + width + shift
        panels = [(low, 0.0), (0.0, high)] if low < 0.0 < high else [(low, high)]
        x, w = np.concatenate([_panel(*ends, self.nodes) for ends in panels], axis=1)
        force = -precision * (x - self.b[j]) - kappa0 * np.sign(x) / sigma - kappa1 * x / sigma**2
        if step_size == 0.0:
            energy = precision * (x - self.b[j]) ** 2 / 2
            energy += kappa0 * np.abs(x) / sigma + kappa1 * x**2 / (2 * sigma**2)
            one = w * np.exp(-self.tau * (energy - energy.min()))
            one /= one.sum()
            return Law(x, one, None)
        scale = np.sqrt(2 * step_size / self.tau)
        move = norm.pdf(x[:, None], x + step_size * force, scale) * w[:, None]  # to row from column
        move /= move.sum(0)
        # The stationary vector: move @ one = one, one.sum() = 1.
        system = move - np.eye(len(x))
        system[-1] = 1.0
        one = np.linalg.solve(system, np.eye(len(x))[-1])
        return Law(x, one, (move * one).T)

    # -- the mean field

    def mean_field(self, theta: Array, step_size: float) -> Array:
        """Compute the mean field h(theta), shape (2 p + 2,)."""
        rho, q, sigma, delta = self.split(theta)
        laws = [self.law(j, theta, step_size) for j in range(self.p)]
        inclusion = [law.one @ self.inclusion(law.nodes, sigma, delta) for law in laws]
        a, b = self.beta
        sparsity = (rho.sum() + a - 1) / (a + b + self.p - 2)
        scale = self.mean_scale(laws, q)
        return np.concatenate([inclusion - rho, rho - q, [scale - sigma, sparsity - delta]])

    def inclusion(self, x: Array, sigma: Any, delta: Any) -> Array:
        """Compute rho~ at weights x, equation (4)."""
        odds = norm.logpdf(x, 0, sigma * self.v1**0.5) - laplace.logpdf(x, 0, sigma * self.v0)
        return expit(logit(delta) + odds)

    def mean_scale(self, laws: list[Law], q: Array) -> float:
        """Compute E sigma~ of equation (6), over the product of the laws."""
        absolute, square, weight = map(np.asarray, (0.0, self.nu_lambda, 1.0))
        count = self.p + self.nu + 2
        if self.noise is None:
            count, square = count + self.size, square + self.rss
        for j, law in enumerate(laws):
            b_j, j_j, i_j, probability = self._atoms(j, law, q[j])
            absolute = np.add.outer(absolute, b_j)
            square = np.add.outer(square, j_j + i_j)
            weight = np.multiply.outer(weight, probability)
        roots = absolute + np.sqrt(absolute**2 + 4 * count * square)
        return float(np.sum(weight * roots) / (2 * count))

    def _atoms(self, j: int, law: Law, q: float) -> tuple[Any, Any, Any, Array]:
        """
        Return the terms of coordinate j in B, J and I, and their probability. B and J are those of
        the state after a step; I, which comes with the gradient, is that of the state before it.
        """
        x = law.nodes
        b_j, j_j = (1 - q) / self.v0 * np.abs(x), q / self.v1 * x**2
        if self.noise is not None:
            return b_j, j_j, 0.0, law.one
        i_j = self.size * (x - self.b[j]) ** 2
        if law.two is None:
            return b_j, j_j, i_j, law.one
        b_j, j_j, i_j = np.broadcast_arrays(b_j, j_j, i_j[:, None])
        return b_j.ravel(), j_j.ravel(), i_j.ravel(), law.two.ravel()

    # -- its root

    def limit(self, step_size: float = 0.0) -> Array:
        """Compute theta*, the root of h, shape (2 p + 2,)."""
        p = self.p

        def full(reduced: Array) -> Array:  # at the root q = rho
            return np.concatenate([reduced[:p], reduced])

        start = np.concatenate([np.full(p, 0.5), [1.0, 0.5]])
        for _ in range(20):  # towards the root, without leaving the domain
            field = self.mean_field(full(start), step_size)
            start = start + 0.5 * np.concatenate([field[:p], field[2 * p :]])
        solution = root(
            lambda t: np.delete(self.mean_field(full(t), step_size), range(p, 2 * p)),
            start,
            tol=1e-10,
        )
        assert solution.success, solution.message
        return full(solution.x)

    def jacobian(self, theta: Array, step_size: float = 0.0, difference: float = 1e-5) -> Array:
        """Compute dh / dtheta by central differences, shape (2 p + 2, 2 p + 2)."""
        steps = difference * np.eye(len(theta))
        ahead = [self.mean_field(theta + d, step_size) for d in steps]
        back = [self.mean_field(theta - d, step_size) for d in steps]
        return np.stack([(a - b) / (2 * difference) for a, b in zip(ahead, back, strict=True)], 1)


def _panel(low: float, high: float, nodes: int) -> Array:
    """Return nodes and weights of Gauss-Legendre quadrature, shape (2, nodes)."""
    x, w = leggauss(nodes)
    return np.stack([(high - low) / 2 * x + (high + low) / 2, (high - low) / 2 * w])
