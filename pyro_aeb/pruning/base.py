# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Options of pruning: how many weights are zero, when, and by what score they are selected. A new
score is a subclass of :class:`Pruning` with its own :meth:`Pruning.keys`.
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
    Base class of all prunings. A layer is a site. The number of zero weights is exact to one weight
    (for :class:`UnitPruning` to one unit a layer); weights that are zero already count.

    Without ``freeze`` there is no mask: pruned weights continue to move and may grow back, and
    every pruning step selects anew. With ``every`` above 1, draws between pruning steps have no
    zeros; take draws at multiples of ``every``.

    :param sparsity: share of *all* sampled weights of the model to set to zero, a number in [0, 1]
        or a schedule such as :class:`~pyro_aeb.schedules.PruningSchedule`. Weights that cannot be
        pruned (biases, BatchNorm) count as well, so a larger share of the prunable ones is zero.
    :param str scope: ``"layer"``, the same share of every layer, or ``"global"``, the lowest scores
        of all layers together.
    :param bool freeze: whether a pruned weight stays zero. It is then held at zero after every
        step, with its momentum, and the mask only grows, even where the schedule falls.
    :param int every: prune at steps that are multiples of this number.
    :param sites: names of the sites that may be pruned, or patterns of :mod:`fnmatch`, by default
        the SSGL sites. They must be unconstrained.
    :raises TypeError: if an option is of the wrong type.
    :raises ValueError: if an option is out of range.
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
        Return the scores of the weights: the lowest first key is pruned first, and each further key
        breaks ties of the one before. Weights that are zero must come first.

        :param Tensor weights: shape (..., n); (..., units, weights of a unit) if ``by_unit``.
        :param probability: of the wide component, shaped as the weights, if the class sets
            ``needs_probability``; else None.
        :returns: tensors of shape (..., n), or (..., units) if ``by_unit``.
        """


@dataclass(frozen=True, init=False)
class MagnitudePruning(Pruning):
    """
    Set the smallest weights to zero. For the options see :class:`Pruning`::

        MagnitudePruning(PruningSchedule(target=0.9, damping=0.99, period=50))
    """

    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """Return the magnitude."""
        return (weights.abs(),)


@dataclass(frozen=True, init=False)
class ProbabilityPruning(Pruning):
    """
    Set the weights to zero that least probably belong to the wide component of their SSGL prior.
    These probabilities saturate at 0 and 1, so the magnitude breaks ties. The latents must be
    learned: with ``adaptation=StochasticApproximation(0.0)`` all probabilities keep their first
    value, and the magnitude decides. For the options see :class:`Pruning`.
    """

    needs_probability: ClassVar[bool] = True

    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """Return the probability of the wide component, 0 for a zero weight, and the magnitude."""
        assert probability is not None
        return probability * weights.sign().abs(), weights.abs()


@dataclass(frozen=True, init=False)
class UnitPruning(Pruning):
    """
    Set whole units to zero: rows of a matrix, filters of a convolution, in general slices of a site
    along its first axis. Those of the smallest root mean square are pruned. The share is met to one
    unit a layer; with ``scope="global"``, by the fewest units that reach it.

    A layer of few units, such as the output, may lose all of them: exclude it by ``sites``. For the
    options see :class:`Pruning`.
    """

    by_unit: ClassVar[bool] = True

    def keys(self, weights: Tensor, probability: Tensor | None) -> tuple[Tensor, ...]:
        """Return the root mean square of every unit."""
        return (torch.linalg.vector_norm(weights, dim=-1) / math.sqrt(weights.shape[-1]),)
