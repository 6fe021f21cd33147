# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Learn the width v0 of Laplace spikes, of scale :math:`\sigma v_0`, under the prior
:math:`1 / v_0 \sim \mathrm{Gamma}(c, d)` below a limit.

Three moves leave the posterior as it is, each given all that it does not name:

1. *Centred*, the weights stay. With m spikes,
   :math:`1 / v_0 \sim \mathrm{Gamma}(c + m,\, d + \sum |\beta| / \sigma)`.
2. *Non-centred*, spikes scale with v0. In :math:`\epsilon = \log v_0` the density is
   :math:`L(\beta)\, \exp(-c\, \epsilon - d / v_0)`, as the spikes in units of their width keep
   theirs. A random walk of steps of several sizes.
3. *Sigma* moves while the weights and the scale :math:`s = \sigma v_0` of the spikes stay. With k
   weights in the slab and the residuals r of all weights the density is

.. math::
    \sigma^{-(N + k - c)}\, \exp(-B / \sigma - C / 2 \sigma^2 - d \sigma / s)\, \pi(\sigma), \qquad
    B = \sum L |\beta|, \quad C = r^T r + \sum K \beta^2.

Stochastic approximation moves log v0, and the spikes with it, by a Newton step towards the maximum
of the same non-centred density. With :math:`b_j = (1 - \rho_j) \beta_j`, the slope
:math:`g = b^T \nabla \log L` and the curvature :math:`h = -b^T (\nabla^2 \log L)\, b`, which is
averaged,

.. math::
    \log v_0 \leftarrow \log v_0 + \omega\, \frac{g - c + d / v_0}{h + c + d / v_0}.

The closed form of Q, :math:`v_0 = (d + \sum (1 - \rho) |\beta| / \sigma) / (c + \sum (1 - \rho))`,
is not used: its fixed point depends on the start, and a relative error e of the spikes' size moves
it by :math:`p\, e`.

Steps of the weights are in units of :math:`\sigma v_0`, and of less where the log likelihood is too
stiff for that, by its curvature in warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.draws import Random
from pyro_aeb.model.structure import Width
from pyro_aeb.priors.components import Component, Quantiles

STEPS = (0.03, 0.1, 0.3, 1.0)
"""The standard deviations of steps of the random walk, of which each is drawn equally often."""

TRIES = 4
"""Steps of the random walk in a scan, of a gradient of all data each."""

LARGEST_STEP = 1.0
"""The most that stochastic approximation moves log v0 by, at a weight of 1."""

STIFFEST = 50.0
"""The largest curvature of the log likelihood in the units of a step: a step size of 0.01 takes it
to one half, and samplers become unstable at 4."""

ROUNDS = 10
"""Rounds of the power method, of a gradient of all data each."""


class WidthLaw(NamedTuple):
    """
    The prior of v0.

    :param float concentration: c.
    :param float rate: d.
    :param float limit: v0 is below it, so that spikes stay the narrow component.
    """

    concentration: float
    rate: float
    limit: float

    def log_density(self, v0: Tensor) -> Tensor:
        """Return the log density of log v0 up to a constant."""
        density = -self.concentration * v0.log() - self.rate / v0
        return torch.where(v0 < self.limit, density, -torch.inf)


def make_law(width: Width, slab: Component) -> WidthLaw:
    """Return the prior of v0, with half of the scale of the slab as the limit."""
    scale = slab.scale if isinstance(slab, Quantiles) else slab.v**0.5
    return WidthLaw(width.concentration, width.rate, 0.5 * float(torch.as_tensor(scale).min()))


def draw_width(v0: Tensor, count: Tensor, total: Tensor, law: WidthLaw, random: Random) -> Tensor:
    r"""
    Draw v0 given the spikes, move 1. A draw above the limit leaves v0 as it is.

    :param Tensor v0: shape (..., 1), in double precision, as all that follows.
    :param Tensor count: m, shape (..., 1).
    :param Tensor total: :math:`\sum |\beta| / \sigma` over them, shape (..., 1).
    """
    drawn = (law.rate + total) / random.gamma(law.concentration + count)
    return torch.where(drawn < law.limit, drawn, v0)


class Scaled(NamedTuple):
    """Sparse weights, (..., P), v0 and the number of accepted steps, shape (..., 1)."""

    beta: Tensor
    v0: Tensor
    accepted: Tensor


def scale_spikes(
    beta: Tensor,
    v0: Tensor,
    spikes: Tensor,
    log_likelihood: Tensor,
    evaluate: Callable[[Tensor], Tensor],
    law: WidthLaw,
    random: Random,
) -> Scaled:
    """
    Move v0 and the spikes with it, move 2.

    :param Tensor spikes: whether a weight is a spike, shape (..., P).
    :param Tensor log_likelihood: at the weights, shape (...).
    :param evaluate: the log likelihood at other sparse weights.
    """
    sizes = torch.tensor(STEPS, dtype=v0.dtype, device=v0.device)
    now, accepted = log_likelihood.unsqueeze(-1), torch.zeros_like(v0)
    for _ in range(TRIES):
        size = sizes[(random.uniform(1) * len(STEPS)).long().clamp(max=len(STEPS) - 1)]
        factor = (size * torch.special.ndtri(random.uniform(1))).exp()
        scaled = torch.where(spikes, beta * factor, beta)
        new = evaluate(scaled).unsqueeze(-1)
        log_ratio = new - now + law.log_density(v0 * factor) - law.log_density(v0)
        accept = random.uniform(1).log() < log_ratio  # False for NaN
        beta, now = torch.where(accept, scaled, beta), torch.where(accept, new, now)
        v0, accepted = torch.where(accept, v0 * factor, v0), accepted + accept
    return Scaled(beta, v0, accepted)


def accept_sigma(
    sigma: Tensor, drawn: Tensor, v0: Tensor, law: WidthLaw, random: Random
) -> tuple[Tensor, Tensor]:
    """
    Return sigma and v0 after move 3, from a draw of sigma under the density without d.

    :param Tensor sigma: shape (..., 1).
    """
    scale = sigma * v0
    log_ratio = -law.rate * (drawn - sigma) / scale
    accept = (random.uniform(1).log() < log_ratio) & (scale / drawn < law.limit)
    return torch.where(accept, drawn, sigma), torch.where(accept, scale / drawn, v0)


def newton_factor(
    v0: Tensor, slope: Tensor, curvature: Tensor, law: WidthLaw, omega: float | Tensor
) -> Tensor:
    """
    Return the factor of v0 in a step of stochastic approximation; all of shape (..., 1).

    :param Tensor slope: g.
    :param Tensor curvature: the average of h.
    """
    c, pull = law.concentration, law.rate / v0
    step = (slope - c + pull) / (curvature.clamp(min=0.0) + c + pull)
    factor = (omega * step.clamp(-LARGEST_STEP, LARGEST_STEP)).exp()
    return torch.minimum(factor, law.limit / v0)


def largest_curvature(
    gradient: Callable[[Tensor], Tensor], position: Tensor, unit: Tensor, random: Random
) -> Tensor:
    """
    Return the largest curvature of a log likelihood, by the power method on differences of its
    gradient; shape (..., 1), 0 where it is not finite.

    :param gradient: of the log likelihood at a position, shape (..., D).
    :param Tensor position: shape (..., D).
    :param Tensor unit: a length that a step may have, shape (..., 1).
    """
    size = position.shape[-1]
    norm = torch.linalg.vector_norm(position, dim=-1, keepdim=True)
    length = torch.maximum(0.1 * unit * size**0.5, 1e-3 * norm)
    here = gradient(position)
    direction, curvature = (random.uniform(size) - 0.5).to(position), torch.zeros_like(unit)
    for _ in range(ROUNDS):
        direction = torch.nn.functional.normalize(direction, dim=-1)
        direction = (here - gradient(position + length * direction)) / length
        curvature = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return torch.where(curvature.isfinite(), curvature, 0.0)
