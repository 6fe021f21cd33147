# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents of a spike-and-slab prior and how they are learned: equations (2) and (6)-(8).

The latents are what the sampler conditions on while it moves the weights: the inclusion
probabilities rho, the penalties kappa0 and kappa1, the scales sigma and the prior inclusion
probabilities delta. After every step of the weights each is moved a little, by the weight omega,
towards the value that closes its equation. Here are the equations, each once (but for (4) and (5),
in which one prior differs from another, see :mod:`pyro_aeb.priors.components`), and
:class:`StochasticApproximation`, with which a user asks for them;
:class:`~pyro_aeb.ssgl_rule.SSGLRule` applies them to a model.

**References**

[1] Wei Deng, Xiao Zhang, Faming Liang, Guang Lin (2019), "An adaptive empirical Bayesian method
    for sparse deep learning", NeurIPS, arXiv 1910.10791. Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.latents.contract import LatentUpdate, Seen, as_update
from pyro_aeb.schedules import Constant, Schedule, as_schedule, check_numbers, is_number


def add_prior_gradient(
    gradient: Tensor,
    beta: Tensor,
    linear: Tensor | None,
    quadratic: Tensor | None,
    sigma: Tensor,
) -> None:
    r"""
    Adds to ``gradient`` the prior's part of equation (2), :math:`-L\, \mathrm{sign}(\beta) / \sigma
    - K \beta / \sigma^2`, with sign(0) = 0; L and K are :math:`\kappa_0` and :math:`\kappa_1` of
    SSGL. All of shape (..., P), but for sigma, which broadcasts.

    :param linear: L of :func:`~pyro_aeb.priors.components.penalties`, None where there is none.
    :param quadratic: K, likewise.
    """
    if quadratic is None:
        assert linear is not None
        slope = linear * beta.sign()
    else:
        slope = torch.div(beta, sigma).mul_(quadratic)
        if linear is not None:
            slope.addcmul_(linear, beta.sign())
    gradient.addcdiv_(slope, sigma, value=-1.0)


def scale_update(
    absolute: Tensor,
    square: Tensor,
    count: float | Tensor,
    nu: float | Tensor,
    nu_lambda: float | Tensor,
) -> Tensor:
    r"""
    Equation (6), the maximiser of Q over sigma, :math:`(B + \sqrt{B^2 + 4 A C}) / (2 A)` with
    :math:`A` = ``count`` :math:`+ \nu + 2`, :math:`B` = ``absolute``, :math:`C` = ``square``
    :math:`+ \nu\lambda`.

    :param Tensor absolute: :math:`B = \sum L |\beta|` over the sparse weights of this sigma, with L
        and K of (5), :math:`\kappa_0` and :math:`\kappa_1` of SSGL.
    :param Tensor square: :math:`J = \sum K \beta^2` over them; where sigma is also the scale of a
        likelihood, plus :math:`I`, the sum over the whole data set of squared errors.
    :param count: p, the number of those weights; where sigma is also the scale of a likelihood,
        plus N, the number of data.
    :param nu: prior degrees of freedom.
    :param nu_lambda: nu times lambda.
    """
    a = count + nu + 2.0
    c = square + nu_lambda
    return (absolute + torch.addcmul(4.0 * a * c, absolute, absolute).sqrt_()) / (2.0 * a)


def sparsity_update(
    total: Tensor, size: float | Tensor, a: float | Tensor, b: float | Tensor
) -> Tensor:
    r"""
    Equation (7), :math:`(\sum_j \rho_j + a - 1) / (a + b + p - 2)`, kept inside (0, 1).

    :param Tensor total: :math:`\sum_j \rho_j` over the weights of this delta.
    :param size: p, their number.
    :param a: first parameter of the Beta prior.
    :param b: second parameter of the Beta prior.
    """
    return beta_mode(total, *beta_counts(size, a, b))


def beta_counts(
    size: float | Tensor, a: float | Tensor, b: float | Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """What no step changes of :func:`sparsity_update`: a - 1, and a + b + p - 2."""
    return a - 1.0, a + b + size - 2.0


def beta_mode(total: Tensor, ones: float | Tensor, of: float | Tensor) -> Tensor:
    """:func:`sparsity_update` from its :func:`beta_counts`."""
    limits = torch.finfo(total.dtype)
    return ((total + ones) / of).clamp(limits.tiny, 1.0 - limits.eps)


def stochastic_approximation(old: Tensor, new: Tensor, weight: float | Tensor) -> Tensor:
    r"""Equation (8), :math:`\theta \leftarrow (1 - \omega) \theta + \omega \tilde\theta`."""
    return torch.lerp(old, new, weight)


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

    The first values of sigma and delta are those of their sites; see ``init_strategy`` of
    :class:`~pyro_aeb.kernel.AEBKernel`.
    """

    weight: Schedule
    initial_inclusion: float | Mapping[str, Tensor] = 0.5
    initial_penalty: float | None = None
    latents: Mapping[str, LatentUpdate] = field(default_factory=dict, hash=False)

    def __init__(
        self,
        weight: Schedule | float,
        initial_inclusion: float | Mapping[str, Tensor] = 0.5,
        initial_penalty: float | None = None,
        latents: Mapping[str, LatentUpdate | Callable[[Seen], Tensor]] | None = None,
    ) -> None:
        object.__setattr__(self, "weight", as_schedule(weight, "weight"))
        object.__setattr__(self, "initial_inclusion", initial_inclusion)
        object.__setattr__(self, "initial_penalty", initial_penalty)
        updates = {name: as_update(name, update) for name, update in (latents or {}).items()}
        object.__setattr__(self, "latents", updates)
        given: Any = initial_inclusion
        if not isinstance(given, (Real, Mapping)):
            raise TypeError(
                f"initial_inclusion is {given!r}, expected a number or a tensor for each SSGL site"
            )
        if isinstance(given, Mapping):
            first = tuple(given.values())
        else:
            check_numbers("StochasticApproximation", initial_inclusion=given)
            first = (torch.tensor(float(given)),)
        for values in first:
            if not isinstance(values, Tensor):
                raise TypeError(
                    f"initial_inclusion holds {values!r}, expected a tensor for each SSGL site"
                )
            if not bool(((values >= 0.0) & (values <= 1.0)).all()):
                raise ValueError(f"{self!r}: expected initial_inclusion in [0, 1]")
        if initial_penalty is not None:
            check_numbers("StochasticApproximation", initial_penalty=initial_penalty)
        if initial_penalty is not None and not 0.0 < initial_penalty < math.inf:
            raise ValueError(f"{self!r}: expected initial_penalty > 0, or None for equation (5)")
        if isinstance(self.weight, Constant):
            self.weight_at(1)

    def __repr__(self) -> str:
        first: object = self.initial_inclusion
        if isinstance(self.initial_inclusion, Mapping):  # thousands of numbers help nobody
            first = {name: tuple(rho.shape) for name, rho in self.initial_inclusion.items()}
        return (
            f"StochasticApproximation(weight={self.weight!r}, initial_inclusion={first!r}, "
            f"initial_penalty={self.initial_penalty!r}"
            + (f", latents={self.latents!r})" if self.latents else ")")
        )

    def weight_at(self, k: int) -> float:
        """
        omega at step k.

        :raises ValueError: if it is outside [0, 1].
        """
        weight = self.weight(k)
        if not (is_number(weight) and 0.0 <= weight <= 1.0):
            raise ValueError(
                f"the stochastic-approximation weight {self.weight!r} is {weight} at step {k}, "
                "expected a number in [0, 1]; a larger offset brings the first weights down"
            )
        return float(weight)
