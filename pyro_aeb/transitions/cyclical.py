# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Stochastic-gradient MCMC in cycles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.schedules import Cyclical
from pyro_aeb.transitions.base import HasStatistics, StepNumbers, Transition
from pyro_aeb.validation import gradient_transition, number, set_fields


@dataclass(frozen=True)
class CyclicalSGMCMC:
    r"""
    Any transition in cycles [1]. Its step size starts every cycle large and falls by a cosine,
    which carries the chain to other modes; in the first share of a cycle no noise is injected
    (exploration), and in the rest it samples::

        CyclicalSGMCMC(SGLD(Cyclical(1e-5, period=10_000)))

    Draws of the exploration are not draws from the posterior: leave out those whose ``sampling`` in
    ``sample_stats`` is 0::

        keep = idata.sample_stats["sampling"].min("chain").values == 1
        posterior = idata.posterior.isel(draw=keep)

    A cycle samples with large steps first and small ones last, so within it the law drifts from one
    that is too wide to the target's. And how often the exploration ends in a mode is not how much
    that mode weighs, which only a sampling stage long enough to cross between modes makes up for.
    Whether a step samples is read off its size, so a check at step sizes of its own
    (:func:`~pyro_aeb.testing.transition.check_transition`) needs a schedule that starts at 1.

    :param inner: the transition, whose ``step_size`` is a schedule
        :class:`~pyro_aeb.schedules.Cyclical`: the cosine of [1], equation (1).
    :param float exploration: the share of a cycle without noise, :math:`\beta` in [1], in [0, 1).

    **References**

    [1] Ruqi Zhang, Chunyuan Li, Jianyi Zhang, Changyou Chen, Andrew Gordon Wilson (2020), "Cyclical
        stochastic gradient MCMC for Bayesian deep learning", ICLR, algorithm 1.
    """

    inner: Transition[Any]
    exploration: float = 0.5

    def __post_init__(self) -> None:
        gradient_transition("CyclicalSGMCMC: inner", self.inner)
        if not isinstance(self.inner.step_size, Cyclical):
            raise TypeError(
                f"CyclicalSGMCMC: inner is {self.inner!r}, expected one with cycles, such as "
                "SGLD(Cyclical(1e-5, period=10_000))"
            )
        advice = "the rest of every cycle samples"
        share = number("CyclicalSGMCMC: exploration", self.exploration, "[0, 1)", advice)
        set_fields(self, exploration=share)

    @property
    def step_size(self) -> Cyclical:
        """That of the inner transition."""
        schedule: Any = self.inner.step_size
        return schedule

    @property
    def threshold(self) -> float:
        """The step size up to which a step samples: steps shrink within a cycle."""
        return 0.5 * self.step_size.initial * (1.0 + math.cos(math.pi * self.exploration))

    def init(self, position: Tensor) -> Any:
        """The inner transition's state at ``position``, shape (..., D)."""
        return self.inner.init(position)

    def step(self, state: Any, gradient: Tensor, noise: Tensor, numbers: StepNumbers) -> Any:
        """
        A step of the inner transition, without noise while it explores; see
        :meth:`pyro_aeb.transitions.base.Transition.step`.
        """
        if numbers.step_size > self.threshold:
            noise = torch.zeros_like(noise)
        return self.inner.step(state, gradient, noise, numbers)

    def statistics(self, before: Any, state: Any, numbers: StepNumbers) -> Mapping[str, Tensor]:
        """
        ``sampling``, 1 where the step samples and 0 where it explores, and what the inner
        transition reports; its ``kinetic_temperature`` is NaN where the step explores.

        :param before: the state before a step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        """
        found: dict[str, Tensor] = {}
        if isinstance(self.inner, HasStatistics):
            found.update(self.inner.statistics(before, state, numbers))
        sampling = numbers.step_size <= self.threshold
        one = state.position.new_ones(state.position.shape[:-1])
        if "kinetic_temperature" in found and not sampling:
            found["kinetic_temperature"] = torch.full_like(one, torch.nan)
        return {**found, "sampling": one * float(sampling)}
