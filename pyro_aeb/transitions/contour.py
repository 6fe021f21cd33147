# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Contour stochastic-gradient Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.schedules import Polynomial, Schedule, as_schedule
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target
from pyro_aeb.validation import count, number, set_fields

WEIGHT = Polynomial(1.0, 1000.0, 0.75)
"""How fast the shares of the bins are learned, by default."""


class ContourSGLDState(NamedTuple):
    """
    :param Tensor position: flat weights, shape (..., D).
    :param Tensor shares: the learned probabilities of the energies' bins, shape (..., m).
    """

    position: Tensor
    shares: Tensor


@dataclass(frozen=True)
class ContourSGLD:
    r"""
    Contour stochastic-gradient Langevin dynamics [1]: SGLD on a density that is flattened along its
    energy :math:`U = -Q`, so that the chain climbs out of modes, with a weight for every draw that
    makes up for it.

    The energies from ``low`` to ``high`` are cut into m bins of width :math:`\Delta`. Let
    :math:`\theta_i` be the shares of the bins, learned along with the chain, J the bin of U, and
    :math:`\log \Psi` piecewise linear in U with the value :math:`\log \theta_i` at the upper end of
    bin i:

    .. math::
        \theta &\leftarrow \theta + \omega_k \theta_J^\zeta (e_J - \theta) \\
        \beta &\leftarrow \beta + \epsilon_k \left(1 + \frac{\zeta}{\tau}
            \frac{\log \theta_J - \log \theta_{J - 1}}{\Delta}\right) \nabla Q
            + N(0, 2 \epsilon_k / \tau).

    In the first bin, and beyond ``low`` and ``high``, the factor is 1. The law of the draws is
    :math:`\exp(\tau Q) / \Psi^\zeta`. A draw's weight is :math:`\Psi^\zeta`; its logarithm is
    ``log_weight`` in ``sample_stats``. A posterior mean is::

        w = np.exp(log_weight - log_weight.max())   # idata.sample_stats["log_weight"]
        mean = (w * idata.posterior["beta"]).sum(("chain", "draw")) / w.sum()

    and ``w.sum() ** 2 / (w ** 2).sum()`` says how many draws of equal weight that is worth.
    Diagnostics that know no weights (R-hat, effective sample size) tell of the flattened law.

    With minibatches J is found from an estimate of U; that blurs the bins, and biases weights by
    the more the noise of U exceeds :math:`\Delta`. Where latents move, Q and with it the bins do:
    use it with latents that have settled. The weight of a draw takes one more gradient at a draw.

    :param step_size: :math:`\epsilon_k`, a number or a schedule; see
        :class:`~pyro_aeb.transitions.sgld.SGLD`.
    :param energies: ``(low, high)``, in units of ``potential`` in ``sample_stats``: a short run of
        SGLD tells what they are at the mode; ``high`` should be where the chain is to get to.
    :param int bins: m, at least 2.
    :param float zeta: :math:`\zeta` in (0, 1], how flat; 0 would be SGLD, and 1 makes all energies
        equally frequent.
    :param weight: :math:`\omega_k`, a number or a schedule.

    **References**

    [1] Wei Deng, Guang Lin, Faming Liang (2020), "A contour stochastic gradient Langevin dynamics
        algorithm for simulations of multi-modal distributions", NeurIPS, algorithm 1. (Their
        weight of a draw is :math:`\theta_J^\zeta`, which jumps where this one is continuous.)
    """

    step_size: Schedule
    energies: tuple[float, float]
    bins: int = 100
    zeta: float = 0.75
    weight: Schedule = WEIGHT

    def __init__(
        self,
        step_size: Schedule | float,
        energies: Sequence[float],
        bins: int = 100,
        zeta: float = 0.75,
        weight: Schedule | float = WEIGHT,
    ) -> None:
        if not isinstance(energies, (tuple, list)) or len(energies) != 2:
            raise TypeError(f"ContourSGLD: energies is {energies!r}, expected (low, high)")
        low, high = (number("ContourSGLD: energies", energy) for energy in energies)
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"ContourSGLD: energies is {energies!r}, expected finite (low, high), low < high"
            )
        set_fields(
            self,
            step_size=as_schedule(step_size, "step_size"),
            energies=(low, high),
            bins=count("ContourSGLD: bins", bins, least=2),
            zeta=number("ContourSGLD: zeta", zeta, "(0, 1]", "larger is flatter"),
            weight=as_schedule(weight, "weight"),
        )

    def init(self, position: Tensor) -> ContourSGLDState:
        """The state at ``position``, shape (..., D), with equal shares."""
        shares = position.new_full((*position.shape[:-1], self.bins), 1.0 / self.bins)
        return ContourSGLDState(position, shares)

    def noise_size(self, size: int) -> int:
        """As many as weights."""
        return size

    def move(
        self,
        state: ContourSGLDState,
        here: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> ContourSGLDState:
        """
        The shares by the energy where the chain stands, and then the step; see
        :meth:`pyro_aeb.transitions.base.TargetTransition.move`.
        """
        epsilon, tau = numbers
        _, own = self._bin(-here.log_density)
        weight = self.weight(target.step) * state.shares.gather(-1, own).pow(self.zeta)
        at_own = torch.zeros_like(state.shares).scatter(-1, own, 1.0)
        shares = state.shares + weight * (at_own - state.shares)
        slope, _ = self.contour(shares, -here.log_density)
        factor = 1.0 + (self.zeta / tau) * slope
        position = state.position + epsilon * factor * here.gradient
        position = position.add_(noise, alpha=math.sqrt(2.0 * epsilon / tau))
        return ContourSGLDState(position, shares)

    def contour(self, shares: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        r"""
        The slope and the value of :math:`\log \Psi`.

        :param Tensor shares: of the bins, shape (..., m).
        :param Tensor energy: -Q, shape (...).
        :returns: both of shape (..., 1).
        """
        place, own = self._bin(energy)
        log_shares = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
        upper = log_shares.gather(-1, own)
        lower = log_shares.gather(-1, (own - 1).clamp_min(0))
        inside = (place >= 1.0) & (place < self.bins)
        rise = torch.where(inside, upper - lower, 0.0)
        return rise / self._width, upper - rise * (1.0 + own - place)

    @property
    def _width(self) -> float:
        low, high = self.energies
        return (high - low) / self.bins

    def _bin(self, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Where an energy is, in bins from ``low``, and its bin; both of shape (..., 1)."""
        place = ((energy - self.energies[0]) / self._width).nan_to_num(0.0).unsqueeze(-1)
        return place, place.floor().clamp(0, self.bins - 1).long()

    def statistics(
        self,
        before: ContourSGLDState,
        state: ContourSGLDState,
        numbers: StepNumbers,
        target: Target,
    ) -> Mapping[str, Tensor]:
        """
        ``log_weight``, the logarithm of the draw's weight up to a constant.

        :param before: the state before a step.
        :param state: the state after it.
        :param StepNumbers numbers: of the step.
        :param Target target: of the step.
        """
        _, log_weight = self.contour(state.shares, -target.batch(state.position).log_density)
        return {"log_weight": self.zeta * log_weight[..., 0]}
