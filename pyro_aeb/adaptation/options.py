# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The options of adaptation by stochastic approximation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyro_aeb.latents.contract import LatentUpdate, Seen, as_update
from pyro_aeb.schedules import Constant, Schedule, as_schedule, number_at
from pyro_aeb.validation import choice, number, set_fields

Penalties = Literal["averaged", "current"]
PENALTIES = ("by the averages of rho, as published", "by the current weights' own rho")
"""Meanings of the options, for error messages."""

SigmaFrom = Literal["all", "slab"]
SIGMA_FROM = ("all sparse weights, as published", "the weights in the slab, spikes left out")

WEIGHT = "the stochastic-approximation weight"
WEIGHT_RANGE = "a number in [0, 1] (a larger offset brings the first weights down)"


@dataclass(frozen=True, repr=False)
class StochasticApproximation:
    r"""
    Learn the latents by stochastic approximation, Algorithm 1 of [1].

    :param weight: :math:`\omega_k` in [0, 1], a number or a schedule. ``Polynomial(10, 1000, 0.7)``
        is the paper's; 1 is the "-EM" variant, in which the latents follow the last draw of the
        weights; 0 freezes them at their first values.
    :param initial_inclusion: the first value of every rho, in [0, 1]: one number, or a tensor for
        each sparse site, by name (to go on from an earlier run, with other settings).
    :param float initial_penalty: the first value of every kappa0 and kappa1, the strengths of the
        two components' penalties (at a weight of 0), positive. By default they start from equation
        (5) at the first rho.
    :param latents: how to learn other latent sites, site name to
        :class:`~pyro_aeb.latents.closed_form.ClosedForm`,
        :class:`~pyro_aeb.latents.gradient_step.GradientStep`, a function of
        :class:`~pyro_aeb.latents.contract.Seen`, or an update of one's own.
    :param penalties: the rho in equation (5). ``"averaged"``, as published: the averages of (8), so
        that a weight feels one blend of both penalties. ``"current"``: (4) at the current weights.
        Then (2) is the gradient of the spike-and-slab density itself, gamma summed out, and sigma
        and delta go to the maximum of their marginal posterior: exact empirical Bayes.
    :param sigma_from: the sparse weights in equation (6). ``"all"``, as published, takes spikes as
        draws at tau = 1. ``"slab"`` leaves the narrower component out, so that neither the
        temperature, nor pruned weights, nor an error of the spikes' size changes sigma. It is for
        chains that have found the effects: with far more weights than data, and a start at the
        prior, sigma may stay at the sd of the data.

    The first values of sigma and delta are those of their sites; see ``init_strategy`` of
    :class:`~pyro_aeb.kernel.aeb_kernel.AEBKernel`.
    """

    weight: Schedule
    initial_inclusion: float | Mapping[str, Tensor] = 0.5
    initial_penalty: float | None = None
    latents: Mapping[str, LatentUpdate] = field(default_factory=dict, hash=False)
    penalties: Penalties = "averaged"
    sigma_from: SigmaFrom = "all"
    absent_fields: ClassVar[Mapping[str, Any]] = {"penalties": "averaged", "sigma_from": "all"}
    """Values of options that a checkpoint does not have: version 0.1 had no others."""

    def __init__(
        self,
        weight: Schedule | float,
        initial_inclusion: float | Mapping[str, Tensor] = 0.5,
        initial_penalty: float | None = None,
        latents: Mapping[str, LatentUpdate | Callable[[Seen], Tensor]] | None = None,
        penalties: Penalties = "averaged",
        sigma_from: SigmaFrom = "all",
    ) -> None:
        set_fields(
            self,
            weight=as_schedule(weight, "weight"),
            initial_inclusion=initial_inclusion,
            initial_penalty=initial_penalty,
            latents={name: as_update(name, update) for name, update in (latents or {}).items()},
            penalties=choice("penalties", penalties, Penalties, *PENALTIES),
            sigma_from=choice("sigma_from", sigma_from, SigmaFrom, *SIGMA_FROM),
        )
        self._check_first_values()
        if isinstance(self.weight, Constant):
            self.weight_at(1)

    def _check_first_values(self) -> None:
        """Check the first values of rho and of the penalties."""
        given: Any = self.initial_inclusion
        initial_penalty = self.initial_penalty
        if not isinstance(given, (Real, Mapping)):
            raise TypeError(
                f"initial_inclusion is {given!r}, expected a number or a tensor for each SSGL site"
            )
        if isinstance(given, Mapping):
            first = tuple(given.values())
        else:
            first = (torch.tensor(number("StochasticApproximation: initial_inclusion", given)),)
        for values in first:
            if not isinstance(values, Tensor):
                raise TypeError(
                    f"initial_inclusion holds {values!r}, expected a tensor for each SSGL site"
                )
            if not bool(((values >= 0.0) & (values <= 1.0)).all()):
                raise ValueError(f"{self!r}: expected initial_inclusion in [0, 1]")
        if initial_penalty is not None:
            number("StochasticApproximation: initial_penalty", initial_penalty)
        if initial_penalty is not None and not 0.0 < initial_penalty < math.inf:
            raise ValueError(f"{self!r}: expected initial_penalty > 0, or None for equation (5)")
        if initial_penalty is not None and self.penalties == "current":
            raise ValueError(
                f"{self!r}: expected no initial_penalty, as penalties of the current weights have "
                "no first values; start the weights elsewhere, by init_strategy"
            )

    def __repr__(self) -> str:
        first: object = self.initial_inclusion
        if isinstance(self.initial_inclusion, Mapping):  # thousands of numbers help nobody
            first = {name: tuple(rho.shape) for name, rho in self.initial_inclusion.items()}
        return (
            f"StochasticApproximation(weight={self.weight!r}, initial_inclusion={first!r}, "
            f"initial_penalty={self.initial_penalty!r}"
            + (f", latents={self.latents!r}" if self.latents else "")
            + ("" if self.penalties == "averaged" else f", penalties={self.penalties!r}")
            + ("" if self.sigma_from == "all" else f", sigma_from={self.sigma_from!r}")
            + ")"
        )

    def weight_at(self, k: int) -> float:
        """
        Return omega at step k.

        :raises ValueError: if it is outside [0, 1].
        """
        return number_at(WEIGHT, self.weight, k, 0.0, 1.0, WEIGHT_RANGE)
