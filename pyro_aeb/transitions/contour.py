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

from pyro_aeb.schedules import Polynomial, Schedule, as_schedule, as_step_size
from pyro_aeb.transitions.base import Evaluated, StepNumbers, Target
from pyro_aeb.validation import count, number, set_fields

WEIGHT = Polynomial(1.0, 1000.0, 0.75)
"""Default weight of the updates of the bins' shares."""


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
    energy :math:`U = -Q`, so that the chain leaves modes, with an importance weight for every draw.

    The energies from ``low`` to ``high`` are cut into m bins of width :math:`\Delta`. Let
    :math:`\theta_i` be the learned shares of the bins, J the bin of U, and :math:`\log \Psi`
    piecewise linear in U with the value :math:`\log \theta_i` at the upper end of bin i:

    .. math::
        \theta &\leftarrow \theta + \omega_k \theta_J^\zeta (e_J - \theta) \\
        \beta &\leftarrow \beta + \epsilon_k \left(1 + \frac{\zeta}{\tau}
            \frac{\log \theta_J - \log \theta_{J - 1}}{\Delta}\right) \nabla Q
            + N(0, 2 \epsilon_k / \tau).

    In the first bin, and beyond ``low`` and ``high``, the factor is 1.

    *Stationary law:* :math:`\exp(\tau Q) / \Psi^\zeta`. The weight of a draw is
    :math:`\Psi^\zeta`; its logarithm is ``log_weight`` in ``sample_stats``. A posterior mean is::

        w = np.exp(log_weight - log_weight.max())   # idata.sample_stats["log_weight"]
        mean = (w * idata.posterior["beta"]).sum(("chain", "draw")) / w.sum()

    and ``w.sum() ** 2 / (w ** 2).sum()`` is the equivalent number of draws of equal weight.
    Diagnostics without weights (R-hat, effective sample size) describe the flattened law.

    With minibatches J comes from an estimate of U. That blurs the bins, and biases the weights the
    more, the more the noise of U exceeds :math:`\Delta`. Moving latents change Q and with it the
    bins: use it once they have converged. The weight takes one more gradient a draw.

    :param step_size: :math:`\epsilon_k`, a number or a schedule; see
        :class:`~pyro_aeb.transitions.sgld.SGLD`.
    :param energies: ``(low, high)``, in units of ``potential`` in ``sample_stats``. A short run of
        SGLD shows their values at the mode; ``high`` is the highest energy the chain should reach.
    :param int bins: m, at least 2.
    :param float zeta: :math:`\zeta` in (0, 1], the flatness; 1 makes all energies equally frequent,
        and 0 would be SGLD.
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
            step_size=as_step_size(step_size),
            energies=(low, high),
            bins=count("ContourSGLD: bins", bins, least=2),
            zeta=number("ContourSGLD: zeta", zeta, "(0, 1]", "larger is flatter"),
            weight=as_schedule(weight, "weight"),
        )

    def init(self, position: Tensor) -> ContourSGLDState:
        """Return the state at ``position``, shape (..., D), with equal shares."""
        shares = position.new_full((*position.shape[:-1], self.bins), 1.0 / self.bins)
        return ContourSGLDState(position, shares)

    def noise_size(self, size: int) -> int:
        """Return ``size``: one number a weight."""
        return size

    def move(
        self,
        state: ContourSGLDState,
        evaluated: Evaluated,
        noise: Tensor,
        numbers: StepNumbers,
        target: Target,
    ) -> ContourSGLDState:
        """
        Update the shares by the current energy, and step; see
        :meth:`pyro_aeb.transitions.base.TargetTransition.move`.
        """
        epsilon, tau = numbers
        _, index = self._bin(-evaluated.log_density)
        weight = self.weight(target.step) * state.shares.gather(-1, index).pow(self.zeta)
        indicator = torch.zeros_like(state.shares).scatter(-1, index, 1.0)
        shares = state.shares + weight * (indicator - state.shares)
        slope, _ = self.contour(shares, -evaluated.log_density)
        factor = 1.0 + (self.zeta / tau) * slope
        position = state.position + epsilon * factor * evaluated.gradient
        position = position.add_(noise, alpha=math.sqrt(2.0 * epsilon / tau))
        return ContourSGLDState(position, shares)

    def contour(self, shares: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        r"""
        Return slope and value of :math:`\log \Psi`.

        :param Tensor shares: of the bins, shape (..., m).
        :param Tensor energy: -Q, shape (...).
        :returns: both of shape (..., 1).
        """
        place, index = self._bin(energy)
        log_shares = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
        upper = log_shares.gather(-1, index)
        lower = log_shares.gather(-1, (index - 1).clamp_min(0))
        inside = (place >= 1.0) & (place < self.bins)
        rise = torch.where(inside, upper - lower, 0.0)
        return rise / self._width, upper - rise * (1.0 + index - place)

    @property
    def _width(self) -> float:
        low, high = self.energies
        return (high - low) / self.bins

    def _bin(self, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Return an energy in bins from ``low``, and its bin; both of shape (..., 1)."""
        place = ((energy - self.energies[0]) / self._width).nan_to_num(0.0).unsqueeze(-1)
        return place, place.floor().clamp(0, self.bins - 1).long()

    def statistics(
        self,
        before: ContourSGLDState,
        after: ContourSGLDState,
        numbers: StepNumbers,
        target: Target,
    ) -> Mapping[str, Tensor]:
        """Return ``log_weight``, the logarithm of the draw's weight up to a constant."""
        _, log_weight = self.contour(after.shares, -target.batch(after.position).log_density)
        return {"log_weight": self.zeta * log_weight[..., 0]}
