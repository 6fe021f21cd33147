# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Selection of weights by their inclusion probabilities, and sets that stand for one another."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_aeb.diagnostics.batch_means import BATCHES, error_of_mean
from pyro_aeb.diagnostics.inclusion_probabilities import inclusion
from pyro_aeb.testing.linear import Array
from pyro_aeb.testing.monte_carlo import replicates
from pyro_aeb.validation import number

LEAST_SHARE = 0.05
"""The least probability of a member of a credible set, given that no other one is in."""

MOST_TOGETHER = 0.5
"""The most that this probability may be, relative to that, given that another one is in."""


@dataclass(frozen=True)
class CredibleSet:
    """
    Units that stand for one another: probably one of them is in, and the data do not tell which.

    :param members: their names, in the order in which they were added.
    :param units: their numbers among all units.
    :param float probability: that at least one of them is in.
    :param float error: Monte Carlo standard error of that.
    :param float one: probability that exactly one of them is in.
    """

    members: tuple[str, ...]
    units: tuple[int, ...]
    probability: float
    error: float
    one: float

    def __str__(self) -> str:
        text = f"{', '.join(self.members)}: P(one or more in) {self.probability:.3f}"
        return text if len(self.members) == 1 else f"{text}, P(exactly one) {self.one:.3f}"


@dataclass(frozen=True, repr=False)
class Selection:
    """
    Three selections of weights. Printed, it names the units of each.

    :param median: the median probability model, P(in) >= 1/2: site to bools of its shape.
    :param discoveries: the largest set whose expected share of false ones is at most ``fdr``.
    :param float fdr: that bound.
    :param float expected_fdr: the expected share in the set; 0 of an empty one.
    :param float level: the least probability of a credible set.
    :param credible_sets: disjoint, those of the most probable units first.
    :param names: of the units in ``median``, and in ``discoveries``.
    """

    median: dict[str, Array]
    discoveries: dict[str, Array]
    fdr: float
    expected_fdr: float
    level: float
    credible_sets: tuple[CredibleSet, ...]
    names: tuple[tuple[str, ...], tuple[str, ...]]

    def __repr__(self) -> str:
        median, discoveries = self.names
        lines = [
            f"median probability model, P(in) >= 1/2: {_list(median)}",
            f"expected share of false ones <= {self.fdr:g}: {_list(discoveries)}; that share is "
            f"{self.expected_fdr:.3f}",
            f"credible sets of level {self.level:g}: {len(self.credible_sets) or 'none'}",
            *(f"  {each}" for each in self.credible_sets),
        ]
        return "\n".join(textwrap.fill(line, 100, subsequent_indent="    ") for line in lines)


def select(run: Any, fdr: float = 0.05, level: float = 0.95) -> Selection:
    r"""
    Select weights by their inclusion probabilities P.

    - The *median probability model* has all with P >= 1/2. Of all single models it predicts best
      in squared error if the columns of X are orthogonal (Barbieri and Berger, 2004). Of two
      columns that stand for one another, with P = 1/2 each, it may take both or none.
    - The *Bayesian false discovery rate* of a set is the posterior expectation of its share of
      weights that are not in, the mean of 1 - P over the set. The largest set of the most probable
      ones with a rate of at most ``fdr`` is returned (Newton, Noueiry, Sarkar and Ahlquist, 2004);
      of weights with equal P all are in it or none.
    - A *credible set* has at least one weight that is in, with probability ``level`` or more
      (Wang, Sarkar, Carbonetto and Stephens, 2020). It is found from the draws of gamma: a set
      begins with the most probable weight that is in no set. While its probability is below
      ``level``, the weight that is most often in where none of the set is joins it, if that is in
      one of twenty of those draws or more, and is in at most half as often where one of the set is:
      it stands for them. That difference must be two Monte Carlo errors or more. A set that does
      not reach the level is dropped.

    A group of weights with one gamma counts as one.

    :param run: as of :func:`~pyro_aeb.diagnostics.inclusion`, or what that returned, by which a run
        by stochastic approximation can be given: ``aeb.select(aeb.inclusion(mcmc, scans=1))``.
    :param float fdr: bound on the expected share of false discoveries, in (0, 1).
    :param float level: least probability of a credible set, in (0, 1).
    :returns: the selections.
    :raises TypeError: if ``run`` is no run of an AEBKernel or trace of one.
    :raises ValueError: if it has no draws of gamma.
    """
    fdr, level = number("fdr", fdr, "(0, 1)"), number("level", level, "(0, 1)")
    found = inclusion(run)
    draws, names = found.draws, found.draws.names
    probability = found.by_unit("probability")
    chosen = largest_set(probability, fdr)
    median = probability >= 0.5
    return Selection(
        draws.by_site(median),
        draws.by_site(chosen),
        fdr,
        float((1.0 - probability[chosen]).mean()) if chosen.any() else 0.0,
        level,
        tuple(find_credible_sets(draws.gamma("select()"), level, names)),
        (_names(names, median), _names(names, chosen)),
    )


def largest_set(probability: Array, fdr: float) -> Array:
    """
    Return which units are in the largest set of the most probable ones whose mean of 1 - P is at
    most a bound.

    :param probability: P, shape (units,).
    """
    ordered = np.sort(probability)[::-1]
    rate = np.cumsum(1.0 - ordered) / np.arange(1, len(ordered) + 1)
    ends = np.append(ordered[1:] < ordered[:-1], True)  # of ties
    sizes = np.flatnonzero((rate <= fdr) & ends) + 1
    least = ordered[sizes[-1] - 1] if len(sizes) else np.inf
    chosen: Array = probability >= least
    return chosen


def find_credible_sets(gamma: Array, level: float, names: Sequence[str]) -> list[CredibleSet]:
    """
    Return disjoint sets, each with a unit in with probability ``level``; see :func:`select`.

    :param gamma: draws, bool, shape (chains, draws, units).
    """
    share = gamma.mean((0, 1))
    free = share >= LEAST_SHARE * (1.0 - level)
    sets = []
    for first in np.argsort(-share, kind="stable"):
        if not free[first] or share[first] < LEAST_SHARE:
            continue
        members, held = [int(first)], gamma[..., first]
        while held.mean() < level:
            others = np.setdiff1d(np.flatnonzero(free), members)
            best = _substitute(held, gamma[..., others])
            if best is None:
                break
            members.append(int(others[best]))
            held = held | gamma[..., members[-1]]
        if held.mean() >= level:
            free[members] = False
            sets.append(_describe(gamma[..., members], members, names))
    return sets


def _substitute(held: Array, others: Array) -> int | None:
    """
    Return the unit that is most often in where a set has none, if it stands for the set.

    :param held: whether a unit of the set is in, shape (chains, draws).
    :param others: gammas of the others, shape (chains, draws, n).
    """
    if not others.shape[-1]:
        return None
    without = others[~held].mean(0)
    together = others[held].mean(0) if held.any() else np.zeros_like(without)
    allowed = (without >= LEAST_SHARE) & (together <= MOST_TOGETHER * without)
    if not allowed.any():
        return None
    best = int(np.argmax(np.where(allowed, without, -1.0)))
    return best if _is_apart(held, others[..., best]) else None


def _is_apart(held: Array, other: Array) -> bool:
    """Return whether a covariance is below 0 by two Monte Carlo errors."""
    product = (held - held.mean()) * (other - other.mean())
    batches = min(BATCHES, product.shape[1])
    means = [part.mean() for chain in product for part in np.array_split(chain, batches)]
    mean, error = replicates(means)
    return bool(mean + 2.0 * error <= 0.0)


def _describe(gamma: Array, members: Sequence[int], names: Sequence[str]) -> CredibleSet:
    count = gamma.sum(-1)
    held = count > 0
    return CredibleSet(
        tuple(names[unit] for unit in members),
        tuple(members),
        float(held.mean()),
        float(error_of_mean(held)),
        float((count == 1).mean()),
    )


def _names(names: Sequence[str], chosen: Array) -> tuple[str, ...]:
    return tuple(names[int(unit)] for unit in np.flatnonzero(chosen))


def _list(names: Sequence[str]) -> str:
    return f"{len(names)}, {', '.join(names)}" if names else "none"
