# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a user says of pruning: how many weights shall be zero, when, and by what score they go.

A new score is one subclass of :class:`Pruning` with its own :meth:`Pruning.keys`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyro_aeb.schedules import Schedule, as_schedule
from pyro_aeb.validation import choice, count, flag, names, number, set_fields

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Pruning(ABC):
    """
    What all prunings share. The layers are sites; what is pruned are numbers of weights, exact to
    one weight (for :class:`UnitPruning` to one unit a layer), and weights that are zero already
    count.

    Without ``freeze`` there is no mask. Pruned weights go on moving like all others, so they may
    grow back: the next pruning step chooses anew. With ``every`` above 1 the steps between leave
    them free, and draws taken there have no zeros; take draws at multiples of ``every``.

    :param sparsity: the share of *all* the model's sampled weights that shall be zero, a number in
        [0, 1] or a schedule such as :class:`~pyro_aeb.schedules.PruningSchedule`. Weights that may
        not be pruned (biases, BatchNorm) count as well, so the prunable ones give more.
    :param str scope: ``"layer"``, the same share of every layer, or ``"global"``, the lowest scores
        of all layers together.
    :param bool freeze: whether a pruned weight stays zero. It is then held at zero after every
        step, its momentum too, and the mask only grows, even where the schedule falls.
    :param int every: prune at steps that are multiples of this number.
    :param sites: names of the sites that may be pruned, or patterns of :mod:`fnmatch`, by default
        the SSGL sites. They must be unconstrained.
    :raises ValueError: if an option makes no sense.
    """

    sparsity: Schedule
    scope: Scope = "layer"
    freeze: bool = False
    every: int = 1
    sites: tuple[str, ...] | None = None

    by_unit: ClassVar[bool] = False
    needs_probability: ClassVar[bool] = False

    def __init__(
        self,
        sparsity: Schedule | float,
        scope: Scope = "layer",
        freeze: bool = False,
        every: int = 1,
        sites: str | Sequence[str] | None = None,
    ) -> None:
        owner = type(self).__name__
        if isinstance(sparsity, Real):
            sparsity = number(f"{owner}: sparsity", sparsity, "[0, 1]", "90 % is 0.9")
        patterns = [sites] if isinstance(sites, str) else sites
        set_fields(
            self,
            sparsity=as_schedule(sparsity, f"{owner}: sparsity"),
            scope=choice(f"{owner}: scope", scope, Scope),
            freeze=flag(f"{owner}: freeze", freeze),
            every=count(f"{owner}: every", every, "the steps between prunings"),
            sites=names(f"{owner}: sites", patterns),
        )

    @abstractmethod
    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """
        What decides: the lowest first key goes first, the next key breaks ties.

        :param Tensor weights: shape (..., n); (..., units, weights of a unit) if ``by_unit``.
        :param probability: of the wide component, shaped as the weights, where the class sets
            ``needs_probability``; else None.
        :returns: tensors of shape (..., n), or (..., units) if ``by_unit``. Weights that are zero
            must come first.
        """


@dataclass(frozen=True, init=False)
class MagnitudePruning(Pruning):
    """
    Sets the smallest weights to zero. For the options see :class:`Pruning`::

        MagnitudePruning(PruningSchedule(target=0.9, damping=0.99, period=50))
    """

    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """The magnitude."""
        return (weights.abs(),)


@dataclass(frozen=True, init=False)
class ProbabilityPruning(Pruning):
    """
    Sets the weights to zero that least likely belong to the wide component of their SSGL prior.
    These probabilities run into 0 and 1, so the magnitude breaks ties. Needs latents that are
    learned: with ``adaptation=StochasticApproximation(0.0)`` all probabilities stay as they start,
    and the magnitude decides. For the options see :class:`Pruning`.
    """

    needs_probability: ClassVar[bool] = True

    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """The probability of the wide component, 0 for a weight at zero; then the magnitude."""
        assert probability is not None
        return probability * weights.sign().abs(), weights.abs()


@dataclass(frozen=True, init=False)
class UnitPruning(Pruning):
    """
    Sets whole units to zero: rows of a matrix, filters of a convolution, the slices of a site along
    its first axis. Those with the smallest root mean square go. The share is met to one unit a
    layer; with ``scope="global"`` the fewest units go whose weights reach it.

    A layer of few units, such as the output, may lose all of them: leave it out by ``sites``. For
    the options see :class:`Pruning`.
    """

    by_unit: ClassVar[bool] = True

    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """The root mean square of every unit."""
        return (torch.linalg.vector_norm(weights, dim=-1) / math.sqrt(weights.shape[-1]),)
