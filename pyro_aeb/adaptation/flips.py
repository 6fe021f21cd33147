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

While a chain settles, H is that of the spikes, and far from where a strong effect ends: too large
under a logistic likelihood, too small under a Poisson one. The ratio above would reject every such
flip, so that H stayed that of the spikes. A settling scan, whose law is not the posterior, takes
the strongest evidence first. It lowers the log odds :math:`\ell` of a flip by what the log density
of weights and data falls short of the quadratic one, m <= 0, and accepts with probability
:math:`s(\ell + m) / s(\ell)`, s the logistic function: 1 where the likelihood is quadratic. A
move into the slab that goes too far is halved, and the weights climb to their place before the next
unit is looked at, as their misfit would be evidence for others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.conditionals import Conditional
from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.units import Blocks, Units, multiply
from pyro_aeb.model.structure import Residuals

MOST_REDRAWN = 16
"""The most units in the slab whose weights a scan draws anew, by a gradient of all data each."""

HALVINGS = 8
"""The most halvings of a move that goes too far, in a settling scan."""

CLIMBS = 10
"""The most moves of a unit's weights to their place, in a settling scan."""

CLIMB = 0.1
"""The least rise of the log density for which such weights are moved again."""


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


class _Target(NamedTuple):
    """The laws of all units, and the log likelihood at any weights."""

    laws: UnitLaws
    evaluate: Callable[[Tensor], Evaluated]

    def at(self, beta: Tensor) -> _Point:
        """Return the point at some weights, by a gradient of all data."""
        laws, found = self.laws, self.evaluate(beta)
        t = found.gradient + laws.units.map(multiply, laws.curvature, beta)
        delta = laws.delta
        spike = (1.0 - delta).log() + laws.spike.log_mass(t)
        slab = delta.log() + laws.slab.log_mass(t)
        value = found.value.unsqueeze(-1)
        return _Point(beta, t, slab - spike, torch.logaddexp(spike, slab), value)


class _Proposal(NamedTuple):
    """
    The flips that are proposed together, of one unit in each chain or of none.

    :param _Point now: the chains before.
    :param Tensor gamma: shape (..., U).
    :param Tensor chosen: the units that flip, shape (..., U).
    :param Tensor uniform: random numbers of the weights, shape (..., P).
    """

    now: _Point
    gamma: Tensor
    chosen: Tensor
    uniform: Tensor


def flip(
    beta: Tensor,
    gamma: Tensor,
    laws: UnitLaws,
    evaluate: Callable[[Tensor], Evaluated],
    random: Random,
    settling: bool = False,
) -> Flipped:
    """
    Scan over all units once.

    :param Tensor beta: sparse weights, shape (..., P), in double precision, as all that follows.
    :param Tensor gamma: shape (..., U).
    :param evaluate: the log likelihood at other sparse weights, the rest as it is.
    :param bool settling: whether the scan brings a chain to the posterior, and need not keep it.
    """
    units, target = laws.units, _Target(laws, evaluate)
    order = random.uniform(units.count)
    decision, acceptance = random.uniform(units.count), random.uniform(units.count)
    uniform = random.uniform(beta.shape[-1])
    now = target.at(beta)
    rank = (-_wish(now, gamma) if settling else order).argsort(-1).argsort(-1)
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
            now = _redraw(target, now, gamma, random)
            return Flipped(
                now.beta, gamma, probability, now.log_likelihood[..., 0], proposed, accepted
            )
        flips = chosen.any(-1, keepdim=True)
        threshold = torch.where(chosen, acceptance, 1.0).amin(-1, keepdim=True).log()
        proposal = _Proposal(now, gamma, chosen, uniform)
        if settling:
            new, accept = _settle(target, proposal, threshold)
        else:
            new, log_ratio = _propose(target, proposal)
            accept = flips & (threshold < log_ratio)  # False for NaN
        gamma = torch.where(accept & chosen, 1.0 - gamma, gamma)
        now = _choose(accept, new, now)
        proposed, accepted = proposed + flips, accepted + accept


def _propose(target: _Target, proposal: _Proposal) -> tuple[_Point, Tensor]:
    """Propose the other gamma of the chosen units; return it and the log Metropolis ratio."""
    now, spike, slab = proposal.now, target.laws.spike, target.laws.slab
    has_left = proposal.gamma > 0.5
    new = target.at(_draw_other(target.laws, proposal))

    def assumed(t: Tensor, beta: Tensor, in_slab: Tensor) -> Tensor:
        likelihoods = slab.log_likelihood(t, beta), spike.log_likelihood(t, beta)
        return torch.where(in_slab, *likelihoods)

    forward = assumed(now.t, new.beta, ~has_left) - now.log_z
    back = assumed(new.t, now.beta, has_left) - new.log_z
    correction = torch.where(proposal.chosen, back - forward, 0.0).sum(-1, keepdim=True)
    return new, new.log_likelihood - now.log_likelihood + correction


def _settle(target: _Target, proposal: _Proposal, threshold: Tensor) -> tuple[_Point, Tensor]:
    """Propose the other gamma of the chosen units; return where that ends and what is accepted."""
    laws, now, gamma, chosen = target.laws, proposal.now, proposal.gamma, proposal.chosen
    has_left = gamma > 0.5
    enters = (chosen & ~has_left).any(-1, keepdim=True)

    def total(values: Tensor) -> Tensor:
        return torch.where(chosen, values, 0.0).sum(-1, keepdim=True)

    def prior(beta: Tensor) -> Tensor:
        log_priors = laws.spike.log_prior(beta), laws.slab.log_prior(beta)
        return total(torch.where(has_left, *log_priors))

    def joint(point: _Point) -> Tensor:
        return point.log_likelihood + prior(point.beta)

    def quadratic(beta: Tensor) -> Tensor:
        product = laws.units.map(multiply, laws.curvature, beta)
        return total(laws.units.sum(beta * (now.t - 0.5 * product)))

    drawn = _draw_other(laws, proposal)
    expected = now.log_likelihood + quadratic(drawn) - quadratic(now.beta) + prior(drawn)
    wish, log_sigmoid = total(_wish(now, gamma)), torch.nn.functional.logsigmoid

    def is_worth(new: _Point) -> Tensor:
        missing = (joint(new) - expected).clamp(max=0.0)
        return threshold < log_sigmoid(wish + missing) - log_sigmoid(wish)  # False for NaN

    def exceeds(least: Tensor, new: _Point) -> Tensor:
        return joint(new) > least

    flips = chosen.any(-1, keepdim=True)
    reached, accept = _shorten(target, now, drawn, flips, enters, is_worth)
    climbs = accept & enters & ((joint(reached) - expected).abs() > CLIMB)
    for _ in range(CLIMBS):
        if not bool(climbs.any()):
            break
        middle = laws.slab.draw(reached.t, torch.full_like(proposal.uniform, 0.5))
        place = torch.where(laws.units.spread(chosen), middle, reached.beta)
        rises = partial(exceeds, joint(reached) + CLIMB)
        reached, climbs = _shorten(target, reached, place, climbs, climbs, rises)
    return reached, accept


def _shorten(
    target: _Target,
    now: _Point,
    place: Tensor,
    moves: Tensor,
    halves: Tensor,
    is_good: Callable[[_Point], Tensor],
) -> tuple[_Point, Tensor]:
    """
    Move the weights of chains to a place, or less far; return where they are and which have moved.

    :param moves: the chains that are to move, shape (..., 1).
    :param halves: those whose move may be halved until it is good.
    """
    reached, done, share = now, torch.zeros_like(moves), 1.0
    waiting = moves
    for _ in range(1 + HALVINGS):
        new = target.at(torch.lerp(now.beta, place, share))
        good = waiting & is_good(new)
        reached, done = _choose(good, new, reached), done | good
        waiting, share = moves & halves & ~done, 0.5 * share
        if not bool(waiting.any()):
            break
    return reached, done


def _wish(now: _Point, gamma: Tensor) -> Tensor:
    """Return the log odds of the other gamma, shape (..., U)."""
    return torch.where(gamma > 0.5, -now.log_odds, now.log_odds)


def _draw_other(laws: UnitLaws, proposal: _Proposal) -> Tensor:
    """Return the weights with those of the chosen units drawn under the other gamma."""
    now, spread = proposal.now, laws.units.spread
    spike, slab = (law.draw(now.t, proposal.uniform) for law in (laws.spike, laws.slab))
    drawn = torch.where(spread(proposal.gamma > 0.5), spike, slab)
    return torch.where(spread(proposal.chosen), drawn, now.beta)


def _choose(which: Tensor, yes: _Point, no: _Point) -> _Point:
    return _Point(*(torch.where(which, a, b) for a, b in zip(yes, no, strict=True)))


def _redraw(target: _Target, now: _Point, gamma: Tensor, random: Random) -> _Point:
    """Draw the weights in the slab anew, unit by unit, in chains that have few there."""
    slab, spread, in_slab = target.laws.slab, target.laws.units.spread, gamma > 0.5
    turn = in_slab.cumsum(-1)
    size = turn[..., -1:]
    size = torch.where(size <= MOST_REDRAWN, size, 0)
    acceptance, uniform = (random.uniform(tensor.shape[-1]) for tensor in (gamma, now.beta))
    for i in range(1, int(size.max()) + 1):
        chosen = in_slab & (turn == i) & (i <= size)
        drawn = torch.where(spread(chosen), slab.draw(now.t, uniform), now.beta)
        new = target.at(drawn)
        forward = slab.log_likelihood(now.t, new.beta) - slab.log_mass(now.t)
        back = slab.log_likelihood(new.t, now.beta) - slab.log_mass(new.t)
        log_ratio = torch.where(chosen, back - forward, 0.0).sum(-1, keepdim=True)
        log_ratio = log_ratio + new.log_likelihood - now.log_likelihood
        threshold = torch.where(chosen, acceptance, 1.0).amin(-1, keepdim=True).log()
        accept = chosen.any(-1, keepdim=True) & (threshold < log_ratio)  # False for NaN
        now = _choose(accept, new, now)
    return now
