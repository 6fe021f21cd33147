# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
A transition on a Gaussian target as the linear map that it is.

With Q of curvature H and mean m the gradient is :math:`-H (\beta - m)`. On such a target a step of
SGLD, SGHMC and most splitting schemes is affine in the state x, which holds the position and
whatever else the transition keeps, in the noise z and in an error e of the gradient:

.. math:: x' = A x + c + B z + C e.

The matrices are read off ``transition.step`` itself, from steps in float64 along every axis, so no
formula of the transition is needed. Random steps of several lengths tell whether it is affine at
all: a thermostat or a preconditioner is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from pyro_aeb.transitions import StepNumbers, Transition

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class LinearScheme:
    """
    A step on a Gaussian target as an affine map of S numbers, of which the position is the first D.

    :param matrix: A, shape (S, S).
    :param offset: c, shape (S,).
    :param noise: B, the response to the noise, shape (S, D).
    :param gradient: C, the response to an error of the gradient, shape (S, D).
    """

    matrix: Array
    offset: Array
    noise: Array
    gradient: Array

    @property
    def size(self) -> int:
        """D, the length of the position."""
        return self.noise.shape[1]

    @property
    def spectral_radius(self) -> float:
        """The largest absolute eigenvalue of A. The chain is stable where it is below 1."""
        return float(np.abs(np.linalg.eigvals(self.matrix)).max())

    def mean(self) -> Array:
        """The stationary mean of the state, (I - A)^-1 c, shape (S,)."""
        return np.asarray(np.linalg.solve(np.eye(len(self.matrix)) - self.matrix, self.offset))

    def covariance(self, gradient_variance: float = 0.0) -> Array:
        """
        The stationary covariance V of the state, shape (S, S), from the discrete Lyapunov equation
        V = A V A^T + B B^T + g C C^T.

        :param float gradient_variance: g, that of the error of every coordinate of the gradient.
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
        """The part of :meth:`covariance` that is the position's, shape (D, D)."""
        return self.covariance(gradient_variance)[: self.size, : self.size]


def linear_scheme(
    transition: Transition[Any], curvature: Array, mean: Array, numbers: StepNumbers
) -> LinearScheme | None:
    """
    The affine map of a step on the Gaussian target of some curvature and mean.

    :param transition: any transition.
    :param curvature: H, symmetric and positive definite, shape (D, D).
    :param mean: m, shape (D,).
    :param StepNumbers numbers: step size and inverse temperature.
    :returns: None where a step is not affine in the state, the noise and the gradient.
    """
    flat = _flat_step(transition, torch.from_numpy(curvature), torch.from_numpy(mean), numbers)
    if flat is None:
        return None
    origin, step = flat
    size = len(mean)
    none = np.zeros(size)
    at_origin = step(origin, none, none)
    matrix = np.stack([step(origin + axis, none, none) for axis in np.eye(len(origin))], 1)
    noise = np.stack([step(origin, axis, none) for axis in np.eye(size)], 1)
    gradient = np.stack([step(origin, none, axis) for axis in np.eye(size)], 1)
    matrix, noise, gradient = (m - at_origin[:, None] for m in (matrix, noise, gradient))
    scheme = LinearScheme(matrix, at_origin - matrix @ origin, noise, gradient)
    return scheme if _explains(scheme, step, origin) else None


_FlatStep = Callable[[Array, Array, Array], Array]


def _flat_step(
    transition: Transition[Any], curvature: Tensor, mean: Tensor, numbers: StepNumbers
) -> tuple[Array, _FlatStep] | None:
    """The first state and the step as a function of flat arrays: state, noise, gradient's error."""
    first = transition.init(mean.clone())
    if not all(tensor.is_floating_point() for tensor in first):
        return None
    shapes = [tensor.shape for tensor in first]
    sizes = [shape.numel() for shape in shapes]

    def step(flat: Array, noise: Array, error: Array) -> Array:
        parts = torch.from_numpy(flat).split(sizes)
        state = type(first)(*(p.reshape(s).clone() for p, s in zip(parts, shapes, strict=True)))
        gradient = -curvature @ (state.position - mean) + torch.from_numpy(error)
        after = transition.step(state, gradient, torch.from_numpy(noise).clone(), numbers)
        return torch.cat([tensor.reshape(-1) for tensor in after]).numpy()

    return torch.cat([tensor.reshape(-1) for tensor in first]).numpy(), step


def _explains(scheme: LinearScheme, step: _FlatStep, origin: Array) -> bool:
    """Whether the affine map gives what random steps give, up to rounding in float64."""
    rng = np.random.default_rng(0)
    for length in (0.1, 1.0, 10.0):
        for _ in range(3):
            x = origin + length * rng.standard_normal(len(origin))
            z, e = length * rng.standard_normal((2, scheme.size))
            found = step(x, z, e)
            terms = [scheme.matrix @ x, scheme.offset, scheme.noise @ z, scheme.gradient @ e]
            scale = 1.0 + sum(np.abs(term).max() for term in terms)
            if not np.abs(found - sum(terms)).max() < 1e-10 * scale:  # NaN is no agreement either
                return False
    return True
