# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Draw sigma given gamma, the wide weights, and the narrow ones in units of sigma, which move with it
(a non-centred parametrisation). So neither their number nor their size enters, and an error of the
sampler in the spikes, which are too narrow for its steps, does no harm.

With k wide weights, whose penalties are L and K, the residuals :math:`r_0` without the narrow
weights, and these weights' part of the prediction :math:`\sigma w`, the density is

.. math::
    \sigma^{-(N + k)}\, \exp(-B / \sigma - C / 2 \sigma^2)\, \pi(\sigma), \qquad
    B = \sum L |\beta| - r_0^T w, \quad C = r_0^T r_0 + \sum K \beta^2,

where sigma is the scale of a Normal likelihood whose mean is linear in the weights; N and both
terms of :math:`r_0` are absent where it is none. Both follow from the likelihood and its gradient
at narrow weights of zero, which sigma does not change: so a draw from that density is a proposal
that does not depend on the sigma before it, and the likelihood of the rest decides by a Metropolis
ratio, which is 1 in that case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.draws import Random, draw_scale, walk_scale
from pyro_aeb.adaptation.flips import Evaluated
from pyro_aeb.adaptation.spike_and_slab import SpikeAndSlabRule
from pyro_aeb.model.structure import Residuals


class WideWeights(NamedTuple):
    """
    The weights that stay as sigma moves.

    :param Tensor mask: shape (..., P), True for a wide weight.
    :param linear: their penalties L, shape (..., P), None for none.
    :param quadratic: their penalties K, likewise.
    """

    mask: Tensor
    linear: Tensor | None
    quadratic: Tensor | None


class Moved(NamedTuple):
    """Sparse weights, sigmas, shape (..., S), and whether they have moved, shape (..., 1)."""

    beta: Tensor
    sigma: Tensor
    accepted: Tensor


Evaluate = Callable[[Tensor, Tensor], Evaluated]
"""The log likelihood at other sparse weights and sigmas, the rest as it is."""


def move_sigma(
    rule: SpikeAndSlabRule,
    beta: Tensor,
    sigma: Tensor,
    wide: WideWeights,
    log_likelihood: Tensor,
    evaluate: Evaluate,
    random: Random,
) -> Moved:
    """
    Move all learned sigmas, and the narrow weights with them.

    :param Tensor beta: sparse weights, shape (..., P), in double precision, as all that follows.
    :param Tensor sigma: shape (..., S).
    :param Tensor log_likelihood: at both, shape (...).
    """
    learned = rule.sigma_learned.mask
    spread = rule.spread_sigma
    narrow = ~wide.mask & spread(learned.expand(sigma.shape))
    at_zero = evaluate(torch.where(narrow, 0.0, beta), sigma)
    like = at_zero.gradient.new_zeros(())
    residual, data = rule.residuals.add(torch.zeros_like(sigma).to(like), 0.0, at_zero.residuals)
    residual = residual.double()
    tilt = rule.sum_by_sigma(torch.where(narrow, beta * at_zero.gradient, 0.0)) * -sigma
    tilt = torch.where(rule.has_likelihood, tilt, 0.0)
    count = rule.sum_by_sigma(wide.mask.double()) + data
    linear, quadratic = (
        None if penalty is None else torch.where(wide.mask, penalty, 0.0)
        for penalty in (wide.linear, wide.quadratic)
    )
    absolute, square = rule.weigh(linear, quadratic, beta.abs())
    new = _draw(rule, sigma, count, absolute + tilt, square + residual, random)
    new = torch.where(learned, new, sigma)
    scaled = torch.where(narrow, beta * spread(new / sigma), beta)
    moved = evaluate(scaled, new)

    def expected(s: Tensor) -> Tensor:
        return (-tilt / s - 0.5 * residual / s.square()).sum(-1)

    log_ratio = moved.value - log_likelihood - (expected(new) - expected(sigma))
    accepted = random.uniform(1).log() < log_ratio.unsqueeze(-1)  # False for NaN
    return Moved(torch.where(accepted, scaled, beta), torch.where(accepted, new, sigma), accepted)


def draw_sigma_at_fixed_weights(
    rule: SpikeAndSlabRule,
    beta: Tensor,
    sigma: Tensor,
    wide: WideWeights,
    residuals: Mapping[str, Residuals],
    concentration: float,
    random: Random,
) -> Tensor:
    r"""
    Draw sigma given all weights and the scale of the narrow ones, from the density
    :math:`\sigma^{-(N + k - c)} \exp(-B / \sigma - C / 2 \sigma^2)\, \pi(\sigma)`; see
    :mod:`pyro_aeb.adaptation.width`. Where its exponent is not positive sigma stays.

    :param Tensor sigma: shape (..., 1).
    :param residuals: at the weights.
    :param concentration: c.
    """
    count = rule.sum_by_sigma(wide.mask.double()) - concentration
    like = next((own.square for own in residuals.values()), sigma)
    square, data = rule.residuals.add(torch.zeros_like(sigma).to(like), 0.0, residuals)
    count = count + data
    linear, quadratic = (
        None if penalty is None else torch.where(wide.mask, penalty, 0.0)
        for penalty in (wide.linear, wide.quadratic)
    )
    absolute, of_slab = rule.weigh(linear, quadratic, beta.abs())
    can_move = count + rule.nu > 0.0
    drawn = _draw(
        rule, sigma, torch.where(can_move, count, 1.0), absolute, of_slab + square.double(), random
    )
    return torch.where(can_move, drawn, sigma)


def _draw(
    rule: SpikeAndSlabRule,
    sigma: Tensor,
    count: Tensor,
    b: Tensor,
    c: Tensor,
    random: Random,
) -> Tensor:
    """Draw the sigmas from the density above, or move them so that it stays their law."""
    if rule.terms is None:
        learned = rule.sigma_learned.mask
        a = torch.where(learned, count + rule.nu, 1.0)
        c = torch.where(learned, c + rule.nu_lambda, 1.0)
        return draw_scale(a, torch.where(learned, b, 0.0), c, random)
    # Of an InverseGamma's slope, that of sigma squared, to the slope of its density in sigma.
    constant = rule.terms.constant + rule.are_variances.to(sigma)
    terms = rule.terms._replace(constant=constant)
    return walk_scale(sigma, count, b, c + rule.nu_lambda, terms, random)
