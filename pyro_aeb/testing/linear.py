# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Transitions that are linear on Gaussian targets.

If Q has curvature H and mean m, its gradient is :math:`-H (\beta - m)`. On such a target a step of
SGLD, SGHMC and most splitting schemes is affine in the state x, which holds the position and all
else that the transition keeps, in the noise z and in an error e of the gradient:

.. math:: x' = A x + c + B z + C e.

The matrices are measured by steps in float64 along every axis, so no formula of the transition is
needed. Random steps of several lengths test whether the step is affine at all: that of a thermostat
or a preconditioner is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from pyro_aeb.testing.steps import Gaussian, advance
from pyro_aeb.transitions import AnyTransition, StepNumbers
from pyro_aeb.transitions.base import noise_size

Array = np.ndarray[Any, np.dtype[Any]]

STEPS = 24
"""Number of random steps that must agree with the affine map."""


@dataclass(frozen=True, eq=False)
class LinearScheme:
    """
    A step on a Gaussian target as an affine map of a state of S numbers, the first D of which are
    the position.

    :param matrix: matrix A, shape (S, S).
    :param offset: offset c, shape (S,).
    :param noise: response B to the noise, shape (S, K), if a step takes K random numbers.
    :param gradient: response C to an error of the gradient, shape (S, D).
    """

    matrix: Array
    offset: Array
    noise: Array
    gradient: Array

    @property
    def size(self) -> int:
        """D, the length of the position."""
        return self.gradient.shape[1]

    @property
    def spectral_radius(self) -> float:
        """The largest absolute eigenvalue of A. The chain is stable if it is below 1."""
        return float(np.abs(np.linalg.eigvals(self.matrix)).max())

    def mean(self) -> Array:
        """Return the stationary mean of the state, (I - A)^-1 c, shape (S,)."""
        return np.asarray(np.linalg.solve(np.eye(len(self.matrix)) - self.matrix, self.offset))

    def covariance(self, gradient_variance: float = 0.0) -> Array:
        """
        Return the stationary covariance V of the state, shape (S, S), the solution of the discrete
        Lyapunov equation V = A V A^T + B B^T + g C C^T.

        :param float gradient_variance: variance g of the error of every coordinate of the gradient.
        :raises ValueError: if the chain is not stable.
        """
        if self.spectral_radius >= 1.0:
            raise ValueError(
                f"the spectral radius is {self.spectral_radius:.6g}, expected less than 1: the "
                "chain has no stationary law; use a smaller step size"
            )
        drive = self.noise @ self.noise.T + gradient_variance * self.gradient @ self.gradient.T
        return solve_discrete_lyapunov(self.matrix, drive)

    def position_covariance(self, gradient_variance: float = 0.0) -> Array:
        """Return the position's block of :meth:`covariance`, shape (D, D)."""
        return self.covariance(gradient_variance)[: self.size, : self.size]


def linear_scheme(
    transition: AnyTransition, curvature: Array, mean: Array, numbers: StepNumbers
) -> LinearScheme | None:
    """
    Return a step on a Gaussian target as an affine map.

    :param transition: any transition.
    :param curvature: curvature H of the target, symmetric and positive definite, shape (D, D).
    :param mean: mean m of the target, shape (D,).
    :param StepNumbers numbers: step size and inverse temperature.
    :returns: the map; None if a step is not affine in the state, the noise and the gradient.
    """
    flat = _flat_step(transition, torch.from_numpy(curvature), torch.from_numpy(mean), numbers)
    if flat is None:
        return None
    origin, step = flat
    k = noise_size(transition, len(mean))
    z, e = np.zeros(k), np.zeros(len(mean))
    at_origin = step(origin, z, e)
    matrix = np.stack([step(origin + axis, z, e) for axis in np.eye(len(origin))], 1)
    noise = np.stack([step(origin, axis, e) for axis in np.eye(k)], 1)
    gradient = np.stack([step(origin, z, axis) for axis in np.eye(len(mean))], 1)
    matrix, noise, gradient = (m - at_origin[:, None] for m in (matrix, noise, gradient))
    if not all(np.isfinite(m).all() for m in (matrix, noise, gradient)):
        return None
    scheme = LinearScheme(matrix, at_origin - matrix @ origin, noise, gradient)
    return scheme if _is_exact(scheme, step, origin) else None


_FlatStep = Callable[..., Array]


def _flat_step(
    transition: AnyTransition, curvature: Tensor, mean: Tensor, numbers: StepNumbers
) -> tuple[Array, _FlatStep] | None:
    """Return the first state and the step as a function of flat state, noise and gradient error."""
    first = transition.init(mean.clone())
    if not all(tensor.is_floating_point() for tensor in first):
        return None
    gaussian = Gaussian(curvature, mean)
    shapes = [tensor.shape for tensor in first]
    sizes = [shape.numel() for shape in shapes]

    def step(flat: Array, noise: Array, error: Array, k: int = 1) -> Array:
        parts = torch.from_numpy(flat).split(sizes)
        state = type(first)(*(p.reshape(s).clone() for p, s in zip(parts, shapes, strict=True)))
        gradient = gaussian.evaluate(state.position).gradient + torch.from_numpy(error)
        z = torch.from_numpy(noise).clone()
        after = advance(transition, state, gradient, z, numbers, k, gaussian)
        return torch.cat([tensor.reshape(-1) for tensor in after]).numpy()

    return torch.cat([tensor.reshape(-1) for tensor in first]).numpy(), step


def _is_exact(scheme: LinearScheme, step: _FlatStep, origin: Array) -> bool:
    """Return whether the affine map agrees with the first steps of a run, from random states."""
    rng = np.random.default_rng(0)
    for k in range(1, STEPS + 1):
        length = (0.1, 1.0, 10.0)[k % 3]
        x = origin + length * rng.standard_normal(len(origin))
        z = length * rng.standard_normal(scheme.noise.shape[1])
        e = length * rng.standard_normal(scheme.size)
        state = step(x, z, e, k)
        terms = [scheme.matrix @ x, scheme.offset, scheme.noise @ z, scheme.gradient @ e]
        scale = 1.0 + sum(np.abs(term).max() for term in terms)
        if not np.abs(state - sum(terms)).max() < 1e-10 * scale:  # true for NaN as well
            return False
    return True
