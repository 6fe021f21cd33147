# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

r"""
Collapsed flips: one scan over the gammas of all units, in random order, each with its weights
summed out.

With the gradient g and the curvature H of the log likelihood of all data, which is taken as
quadratic in a unit's weights, :math:`t = g + H \beta` does not depend on those weights, and the
masses M of both components do not either (:mod:`pyro_aeb.adaptation.conditionals`). A gamma is
drawn with :math:`P(\gamma = 1) = M_1 / (M_0 + M_1)`. If it is the one before, the unit's weights
stay; otherwise they are drawn from their law under it. Either way that is a step of a Metropolis
kernel whose law is the posterior: a proposed flip is accepted with the probability

.. math::
    \min\Bigl(1, \frac{L(\beta')}{L(\beta)}
        \frac{\hat L_{\gamma}(\beta; t')\, Z(t)}{\hat L_{\gamma'}(\beta'; t)\, Z(t')}\Bigr),
    \qquad Z = M_0 + M_1,

with :math:`\hat L` the quadratic likelihood as the law of that gamma takes it. Where the likelihood
is quadratic and H its curvature, that is 1. A scan takes one gradient of all data, and one more for
every proposed flip.

Then the weights in the slab are drawn anew, unit by unit, by the same law and ratio with the gamma
fixed. The steps in between are as small as the spikes, so that a wide weight would take hundreds to
follow a neighbour that a flip has brought in. It takes one gradient for every unit in the slab, and
is left out where they are many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.conditionals import Conditional
from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.units import Blocks, Units, multiply
from pyro_aeb.model.structure import Residuals

MOST_REDRAWN = 16
"""The most units in the slab whose weights a scan draws anew, by a gradient of all data each."""


class Evaluated(NamedTuple):
    """
    The log likelihood of all data at some weights and sigmas.

    :param Tensor value: shape (...).
    :param Tensor gradient: at the sparse weights, shape (..., P).
    :param residuals: of the likelihoods with a learned sigma.
    """

    value: Tensor
    gradient: Tensor
    residuals: Mapping[str, Residuals]


class UnitLaws(NamedTuple):
    """
    The laws of all units, which stay during a scan.

    :param Blocks curvature: H.
    :param Conditional spike: the law of weights with gamma = 0.
    :param Conditional slab: of those with gamma = 1.
    :param Tensor delta: prior probability of gamma = 1, shape (..., U).
    """

    units: Units
    curvature: Blocks
    spike: Conditional
    slab: Conditional
    delta: Tensor


class Flipped(NamedTuple):
    """
    The result of a scan.

    :param Tensor beta: sparse weights, shape (..., P).
    :param Tensor gamma: shape (..., U), 0 or 1.
    :param Tensor probability: of gamma = 1 when it was drawn, shape (..., U); its mean over scans
        is the Rao-Blackwell estimate of the inclusion probability where the likelihood is
        quadratic.
    :param Tensor log_likelihood: at the weights, shape (...).
    :param Tensor proposed: number of proposed flips, shape (..., 1).
    :param Tensor accepted: number of those that were accepted.
    """

    beta: Tensor
    gamma: Tensor
    probability: Tensor
    log_likelihood: Tensor
    proposed: Tensor
    accepted: Tensor


class _Point(NamedTuple):
    """The weights between two flips, with all that the next one takes; shape (..., n) each."""

    beta: Tensor
    t: Tensor
    log_odds: Tensor
    log_z: Tensor
    log_likelihood: Tensor


def flip(
    beta: Tensor,
    gamma: Tensor,
    laws: UnitLaws,
    evaluate: Callable[[Tensor], Evaluated],
    random: Random,
) -> Flipped:
    """
    Scan over all units once.

    :param Tensor beta: sparse weights, shape (..., P), in double precision, as all that follows.
    :param Tensor gamma: shape (..., U).
    :param evaluate: the log likelihood at other sparse weights, the rest as it is.
    """
    units = laws.units
    rank = random.uniform(units.count).argsort(-1).argsort(-1)
    decision, acceptance = random.uniform(units.count), random.uniform(units.count)
    uniform = random.uniform(beta.shape[-1])
    now = _point(beta, laws, evaluate)
    probability = torch.zeros_like(gamma)
    done = torch.full_like(rank[..., :1], -1)
    proposed = torch.zeros_like(now.log_likelihood)
    accepted = torch.zeros_like(now.log_likelihood)
    while True:
        now_probability = now.log_odds.sigmoid()
        waiting = rank > done
        wanted = ((decision < now_probability) != (gamma > 0.5)) & waiting
        # The next unit that flips, in the order of the scan; those before it stay.
        turn = torch.where(wanted, rank, units.count).amin(-1, keepdim=True)
        probability = torch.where(waiting & (rank <= turn), now_probability, probability)
        chosen, done = rank == turn, turn
        if not bool(chosen.any()):
            now = _redraw(now, gamma, laws, evaluate, random)
            return Flipped(
                now.beta, gamma, probability, now.log_likelihood[..., 0], proposed, accepted
            )
        new, log_ratio = _propose(now, gamma, chosen, laws, evaluate, uniform)
        flips = chosen.any(-1, keepdim=True)
        threshold = torch.where(chosen, acceptance, 1.0).amin(-1, keepdim=True).log()
        accept = flips & (threshold < log_ratio)  # False for NaN
        gamma = torch.where(accept & chosen, 1.0 - gamma, gamma)
        now = _Point(*(torch.where(accept, b, a) for a, b in zip(now, new, strict=True)))
        proposed, accepted = proposed + flips, accepted + accept


def _propose(
    now: _Point,
    gamma: Tensor,
    chosen: Tensor,
    laws: UnitLaws,
    evaluate: Callable[[Tensor], Evaluated],
    uniform: Tensor,
) -> tuple[_Point, Tensor]:
    """Propose the other gamma of the chosen units; return it and the log Metropolis ratio."""
    units, spike, slab = laws.units, laws.spike, laws.slab
    has_left = gamma > 0.5
    drawn = torch.where(
        units.spread(has_left), spike.draw(now.t, uniform), slab.draw(now.t, uniform)
    )
    new = _point(torch.where(units.spread(chosen), drawn, now.beta), laws, evaluate)

    def assumed(t: Tensor, beta: Tensor, in_slab: Tensor) -> Tensor:
        likelihoods = slab.log_likelihood(t, beta), spike.log_likelihood(t, beta)
        return torch.where(in_slab, *likelihoods)

    forward = assumed(now.t, new.beta, ~has_left) - now.log_z
    back = assumed(new.t, now.beta, has_left) - new.log_z
    correction = torch.where(chosen, back - forward, 0.0).sum(-1, keepdim=True)
    return new, new.log_likelihood - now.log_likelihood + correction


def _redraw(
    now: _Point,
    gamma: Tensor,
    laws: UnitLaws,
    evaluate: Callable[[Tensor], Evaluated],
    random: Random,
) -> _Point:
    """Draw the weights in the slab anew, unit by unit, in chains that have few there."""
    slab, in_slab = laws.slab, gamma > 0.5
    turn = in_slab.cumsum(-1)
    size = turn[..., -1:]
    size = torch.where(size <= MOST_REDRAWN, size, 0)
    acceptance, uniform = (random.uniform(tensor.shape[-1]) for tensor in (gamma, now.beta))
    for i in range(1, int(size.max()) + 1):
        chosen = in_slab & (turn == i) & (i <= size)
        drawn = torch.where(laws.units.spread(chosen), slab.draw(now.t, uniform), now.beta)
        new = _point(drawn, laws, evaluate)
        forward = slab.log_likelihood(now.t, new.beta) - slab.log_mass(now.t)
        back = slab.log_likelihood(new.t, now.beta) - slab.log_mass(new.t)
        log_ratio = torch.where(chosen, back - forward, 0.0).sum(-1, keepdim=True)
        log_ratio = log_ratio + new.log_likelihood - now.log_likelihood
        threshold = torch.where(chosen, acceptance, 1.0).amin(-1, keepdim=True).log()
        accept = chosen.any(-1, keepdim=True) & (threshold < log_ratio)  # False for NaN
        now = _Point(*(torch.where(accept, b, a) for a, b in zip(now, new, strict=True)))
    return now


def _point(beta: Tensor, laws: UnitLaws, evaluate: Callable[[Tensor], Evaluated]) -> _Point:
    found = evaluate(beta)
    t = found.gradient + laws.units.map(multiply, laws.curvature, beta)
    delta = laws.delta
    spike = (1.0 - delta).log() + laws.spike.log_mass(t)
    slab = delta.log() + laws.slab.log_mass(t)
    value = found.value.unsqueeze(-1)
    return _Point(beta, t, slab - spike, torch.logaddexp(spike, slab), value)
