# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Models whose limit quadrature finds: a regression with orthogonal features and known noise.

``MAIN`` meets the theorem's assumptions. Given the latents, -Q is strongly convex and each weight
is a chain of its own, which forgets its past within tens of steps; the same fixed point is found
from any start, and it attracts: the eigenvalues of the mean field's Jacobian have real parts below
-0.38. Its first weight is clearly in the Gaussian component, its second hardly; the Beta prior
keeps delta off 0 and 1. ``TWO_POINTS`` is the same with a narrow spike and an effect that is
neither large nor small, and two points attract.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

import pyro_aeb as aeb

Array = npt.NDArray[np.float64]

MAIN = aeb.testing.OrthogonalDesign(
    b=np.array([1.0, -0.3]),
    rss=20.0,
    size=20,
    v0=0.2,
    v1=4.0,
    beta=(3.0, 3.0),
    nu=4.0,
    nu_lambda=4.0,
    tau=1.0,
    noise=1.0,
)
TWO_POINTS = replace(MAIN, b=np.array([1.5, 0.65]), v0=0.03)
DESIGNS = {"main": MAIN, "two points": TWO_POINTS}


def model(design: aeb.testing.OrthogonalDesign, x: Tensor, y: Tensor) -> None:
    """The design as a Pyro model, in which sigma and delta are learned."""
    sigma2 = pyro.sample("sigma2", dist.InverseGamma(design.nu / 2, design.nu_lambda / 2))
    delta = pyro.sample("delta", dist.Beta(*design.beta))
    with pyro.plate("features", design.p):
        beta = pyro.sample("beta", aeb.SSGL(design.v0, design.v1, delta, sigma2.sqrt()))
    with pyro.plate("data", design.size):
        pyro.sample("y", dist.Normal(x @ beta, design.noise), obs=y)


def data(design: aeb.testing.OrthogonalDesign) -> tuple[Tensor, Tensor]:
    """X and y, in single precision."""
    x, y = design.data(seed=0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def nodes(design: aeb.testing.OrthogonalDesign, step: float) -> aeb.testing.OrthogonalDesign:
    """
    The design with enough nodes for the transition density of steps of this size.

    :param step: step size times the likelihood's curvature; 0 for the limit of small steps.
    """
    return replace(design, nodes=40 if step > 0.3 else 120)


@cache
def fixed_point(name: str, step: float, rho: float = 0.5) -> Array:
    """
    Return the limit of the mean field from a start, theta* = (rho, q, sigma, delta).

    :param name: of the design.
    :param step: step size times curvature; 0 for the limit of small steps, the theorem's theta*.
    :param rho: the second weight's first inclusion probability; the others start at 1/2.
    :raises RuntimeError: if it leads nowhere.
    """
    design = nodes(DESIGNS[name], step)
    p, epsilon = design.p, step * (design.noise or 1.0) ** 2 / design.size
    inclusion = np.full(p, 0.5)
    inclusion[1] = rho
    theta = np.concatenate([inclusion, inclusion, [1.0, 0.5]])
    for _ in range(1000):
        field = design.mean_field(theta, epsilon)
        theta = theta + 0.7 * field
        if np.abs(field).max() < 1e-9:
            return theta
    raise RuntimeError(f"{name}, step {step}: no fixed point from rho = {rho}, got to {theta}")


def gain(name: str, step: float) -> float:
    """L, where -L is the largest real part among the eigenvalues of dh/dtheta at theta*."""
    design = nodes(DESIGNS[name], step)
    epsilon = step * (design.noise or 1.0) ** 2 / design.size
    jacobian = design.jacobian(fixed_point(name, step), epsilon)
    return float(-np.linalg.eigvals(jacobian).real.max())


def quantiles(name: str, j: int, step: float, at: Array) -> Array:
    """
    Return quantiles of weight j at theta* for steps of this size; step 0 is exp(tau Q(.; theta*)).

    :param at: probabilities.
    """
    design = nodes(DESIGNS[name], step)
    theta, epsilon = fixed_point(name, step), step * (design.noise or 1.0) ** 2 / design.size
    law = replace(design, nodes=200).law(j, theta, epsilon)
    order = np.argsort(law.nodes)
    x, weight = law.nodes[order], np.maximum(law.one[order], 0.0)
    below = np.cumsum(weight) - weight / 2
    keep = np.concatenate([[True], np.diff(below) > 1e-14])
    return PchipInterpolator(below[keep], x[keep])(np.clip(at, below[0], below[keep][-1]))
