# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""References for SSGL: its two components, and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_aeb.adaptation.latent_values import SpikeAndSlabLatents
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule

PARAMETERS = ["v0", "v1", "delta", "sigma"]


def components(v0: float, v1: float, sigma: float) -> tuple[dist.Laplace, dist.Normal]:
    """Return the components of (1) in double precision, by Pyro."""
    double = torch.tensor([sigma * v0, sigma * v1**0.5], dtype=torch.float64)
    return dist.Laplace(0.0, double[0]), dist.Normal(0.0, double[1])


def mixture_terms(
    value: Tensor, v0: float, v1: float, delta: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return the Laplace and the Gaussian term of (1) in double precision, by Pyro."""
    laplace, gaussian = (d.log_prob(value.double()).exp() for d in components(v0, v1, sigma))
    return (1 - delta) * laplace, delta * gaussian


def ordered_scales(v0: Tensor, v1: Tensor, sigma: Tensor) -> tuple[float, float]:
    """Return the narrow and the wide scale."""
    pair = (sigma * v0).item(), (sigma * v1.sqrt()).item()
    return min(pair), max(pair)


def integral(f: Callable[[Tensor], Tensor], low: float, high: float, nodes: int = 20_001) -> Tensor:
    """Integrate f from low > 0 to high by the trapezoidal rule in log(x)."""
    t = torch.linspace(math.log(low), math.log(high), nodes, dtype=torch.float64)
    return torch.trapezoid(f(t.exp()) * t.exp(), t)


def prior_gradient(rule: SpikeAndSlabRule, latents: SpikeAndSlabLatents, beta: Tensor) -> Tensor:
    """Return the prior's part of the gradient (2)."""
    gradient = torch.zeros_like(beta)
    rule.add_gradient(gradient, latents, beta)
    return gradient
