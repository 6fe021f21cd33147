# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Cyclical stochastic-gradient MCMC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.schedules import Cyclical
from pyro_aeb.transitions.base import StepNumbers, Transition, statistics_of
from pyro_aeb.validation import check_fields, gradient_transition, number


@dataclass(frozen=True)
class CyclicalSGMCMC:
    r"""
    Any transition with cycles of its step size [1]. A cycle starts with large steps, which carry
    the chain to other modes, and the step size falls by a cosine. In the first part of a cycle no
    noise is injected (exploration); in the rest the chain samples::

        CyclicalSGMCMC(SGLD(Cyclical(1e-5, period=10_000)))

    Draws of the exploration are not from the posterior. Leave out those whose ``sampling`` in
    ``sample_stats`` is 0::

        keep = idata.sample_stats["sampling"].min("chain").values == 1
        posterior = idata.posterior.isel(draw=keep)

    *Stationary law.* Within a cycle the law narrows with the steps to that of the inner transition.
    Across cycles, modes have the frequency with which the exploration ends in them, not their
    posterior probability, unless the sampling stage is long enough to cross between them.

    Whether a step samples depends on its size, so a check with step sizes of its own
    (:func:`~pyro_aeb.testing.transition.check_transition`) needs a schedule that starts at 1.

    :param inner: the transition. Its ``step_size`` is a :class:`~pyro_aeb.schedules.Cyclical`
        schedule, the cosine of [1], equation (1).
    :param float exploration: share of a cycle without noise, :math:`\beta` in [1], in [0, 1).

    **References**

    [1] Ruqi Zhang, Chunyuan Li, Jianyi Zhang, Changyou Chen, Andrew Gordon Wilson (2020), "Cyclical
        stochastic gradient MCMC for Bayesian deep learning", ICLR, algorithm 1.
    """

    inner: Transition[Any]
    exploration: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, inner=gradient_transition)
        if not isinstance(self.inner.step_size, Cyclical):
            raise TypeError(
                f"CyclicalSGMCMC: inner is {self.inner!r}, expected one with cycles, such as "
                "SGLD(Cyclical(1e-5, period=10_000))"
            )
        advice = "the rest of every cycle samples"
        check_fields(self, exploration=partial(number, within="[0, 1)", advice=advice))

    @property
    def step_size(self) -> Cyclical:
        """The step size of the inner transition."""
        schedule: Any = self.inner.step_size
        return schedule

    @property
    def threshold(self) -> float:
        """The largest step size of a step that samples: steps shrink within a cycle."""
        return 0.5 * self.step_size.initial * (1.0 + math.cos(math.pi * self.exploration))

    def init(self, position: Tensor) -> Any:
        """Return the inner transition's state at ``position``, shape (..., D)."""
        return self.inner.init(position)

    def step(self, state: Any, gradient: Tensor, noise: Tensor, numbers: StepNumbers) -> Any:
        """
        Step by the inner transition, without noise during exploration; see
        :meth:`pyro_aeb.transitions.base.Transition.step`.
        """
        explores: Any = numbers.step_size > self.threshold
        if isinstance(explores, Tensor):
            noise = torch.where(explores, 0.0, noise)
        elif explores:
            noise = torch.zeros_like(noise)
        return self.inner.step(state, gradient, noise, numbers)

    def statistics(self, before: Any, after: Any, numbers: StepNumbers) -> Mapping[str, Tensor]:
        """
        Return ``sampling``, 1 if the step samples and 0 if it explores, and the statistics of the
        inner transition; its ``kinetic_temperature`` is NaN during exploration.
        """
        statistics = {**statistics_of(self.inner, before, after, numbers)}
        sampling = numbers.step_size <= self.threshold
        one = after.position.new_ones(after.position.shape[:-1])
        if "kinetic_temperature" in statistics and not sampling:
            statistics["kinetic_temperature"] = torch.full_like(one, torch.nan)
        return {**statistics, "sampling": one * float(sampling)}
