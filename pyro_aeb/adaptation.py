# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents of the SSGL prior and how they are learned: equations (4)-(8).

The latents are what the sampler conditions on while it moves the weights: the inclusion
probabilities rho, the penalties kappa0 and kappa1, the scales sigma and the prior inclusion
probabilities delta. After every step of the weights each is moved a little, by the weight omega,
towards the value that closes its equation. :class:`StochasticApproximation` is what a user asks
for; :class:`SSGLRule` is the arithmetic for one model; :class:`SSGLLatents` is the state.

kappa0 and kappa1 are one array in disguise: with ``slab`` the running average of rho, kappa1 is
``slab / v1`` and kappa0 is ``(1 + excess - slab) / v0``, where the number ``excess`` carries what is
left of their first values and decays by (1 - omega) a step.

**References**

[1] Wei Deng, Xiao Zhang, Faming Liang, Guang Lin (2019), "An adaptive empirical Bayesian method
    for sparse deep learning", NeurIPS, arXiv 1910.10791. Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.distributions import inclusion_logit
from pyro_aeb.errors import ModelError
from pyro_aeb.schedules import Constant, Schedule, as_schedule
from pyro_aeb.structure import Delta, Residuals, Sigma, Structure


def penalties(
    slab: Tensor, excess: float | Tensor, v0: float | Tensor, v1: float | Tensor
) -> tuple[Tensor, Tensor]:
    r"""
    Equation (5), averaged: :math:`\kappa_0 = (1 - \rho) / v_0` and :math:`\kappa_1 = \rho / v_1`.

    :param Tensor slab: running average of rho, shape (..., P).
    :param excess: what is left of the first values, :math:`\kappa_0 v_0 + \kappa_1 v_1 - 1`.
    :param v0: Laplace scale over sigma.
    :param v1: variance of the Gaussian component over sigma squared.
    :returns: kappa0 and kappa1, each of shape (..., P).
    """
    return (1.0 + excess - slab) / v0, slab / v1


def prior_gradient(beta: Tensor, kappa0: Tensor, kappa1: Tensor, sigma: Tensor) -> Tensor:
    r"""
    The prior's part of equation (2), :math:`-\kappa_0\, \mathrm{sign}(\beta) / \sigma
    - \kappa_1 \beta / \sigma^2`, with sign(0) = 0. Shape (..., P), as ``beta``.
    """
    return -(kappa0 * beta.sign() + kappa1 * beta / sigma) / sigma


def scale_update(
    absolute: Tensor, square: Tensor, count: float | Tensor, nu: Tensor, nu_lambda: Tensor
) -> Tensor:
    r"""
    Equation (6), the maximiser of Q over sigma, :math:`(B + \sqrt{B^2 + 4 A C}) / (2 A)` with
    :math:`A` = ``count`` :math:`+ \nu + 2`, :math:`B` = ``absolute``, :math:`C` = ``square``
    :math:`+ \nu\lambda`.

    :param Tensor absolute: :math:`B = \sum \kappa_0 |\beta|` over the sparse weights of this sigma.
    :param Tensor square: :math:`J = \sum \kappa_1 \beta^2` over them; where sigma is also the scale
        of a likelihood, plus :math:`I`, the sum over the whole data set of squared errors.
    :param count: p, the number of those weights; where sigma is also the scale of a likelihood,
        plus N, the number of data.
    :param Tensor nu: prior degrees of freedom.
    :param Tensor nu_lambda: nu times lambda.
    """
    a = count + nu + 2.0
    c = square + nu_lambda
    return (absolute + torch.sqrt(absolute * absolute + 4.0 * a * c)) / (2.0 * a)


def sparsity_update(total: Tensor, size: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""
    Equation (7), :math:`(\sum_j \rho_j + a - 1) / (a + b + p - 2)`, kept inside (0, 1).

    :param Tensor total: :math:`\sum_j \rho_j` over the weights of this delta.
    :param Tensor size: p, their number.
    :param Tensor a: first parameter of the Beta prior.
    :param Tensor b: second parameter of the Beta prior.
    """
    limits = torch.finfo(total.dtype)
    return ((total + a - 1.0) / (a + b + size - 2.0)).clamp(limits.tiny, 1.0 - limits.eps)


def stochastic_approximation(old: Tensor, new: Tensor, weight: float) -> Tensor:
    r"""Equation (8), :math:`\theta \leftarrow (1 - \omega) \theta + \omega \tilde\theta`."""
    return torch.lerp(old, new, weight)


@dataclass(frozen=True)
class StochasticApproximation:
    r"""
    Learn the latents by stochastic approximation, Algorithm 1 of [1].

    :param weight: :math:`\omega_k` in [0, 1], a number or a schedule. ``Polynomial(10, 1000, 0.7)``
        is the paper's; 1 is the "-EM" variant, in which the latents follow the last draw of the
        weights; 0 freezes them at their first values.
    :param float initial_inclusion: the first value of every rho, in [0, 1].
    :param float initial_penalty: the first value of every kappa0 and kappa1, positive. By default
        they start from equation (5) at the first rho.

    The first values of sigma and delta are those of their sites; see ``init_strategy`` of
    :class:`~pyro_aeb.kernel.AEBKernel`.
    """

    weight: Schedule
    initial_inclusion: float = 0.5
    initial_penalty: float | None = None

    def __init__(
        self,
        weight: Schedule | float,
        initial_inclusion: float = 0.5,
        initial_penalty: float | None = None,
    ) -> None:
        object.__setattr__(self, "weight", as_schedule(weight, "weight"))
        object.__setattr__(self, "initial_inclusion", float(initial_inclusion))
        object.__setattr__(self, "initial_penalty", initial_penalty)
        if not 0.0 <= self.initial_inclusion <= 1.0:
            raise ValueError(f"{self!r}: expected initial_inclusion in [0, 1]")
        if initial_penalty is not None and not initial_penalty > 0.0:
            raise ValueError(f"{self!r}: expected initial_penalty > 0, or None for equation (5)")
        if isinstance(self.weight, Constant):
            self.weight_at(1)

    def weight_at(self, k: int) -> float:
        """
        omega at step k.

        :raises ValueError: if it is outside [0, 1].
        """
        weight = self.weight(k)
        if not 0.0 <= weight <= 1.0:
            raise ValueError(
                f"the stochastic-approximation weight {self.weight!r} is {weight} at step {k}, "
                "expected a number in [0, 1]; a larger offset brings the first weights down"
            )
        return weight


class SSGLLatents(NamedTuple):
    """
    The latents' values. P sparse weights, S sigmas, L deltas; a leading axis of chains is kept.

    :param Tensor rho: inclusion probabilities, shape (..., P).
    :param Tensor slab: running average of rho, which stands for kappa0 and kappa1, shape (..., P).
    :param excess: what is left of the first kappas; see the module's docstring.
    :param Tensor sigma: scales, shape (..., S).
    :param Tensor delta: prior inclusion probabilities, shape (..., L).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor


@dataclass(frozen=True)
class Groups:
    """
    Which consecutive runs of the sparse slab share a parameter.

    :param tuple sizes: the length of each run; they add up to P.
    :param tuple index: the group of each run.
    :param int count: how many groups there are.
    """

    sizes: tuple[int, ...]
    index: tuple[int, ...]
    count: int

    def spread(self, values: Tensor) -> Tensor:
        """One value a group, shape (..., count), to a shape that broadcasts with (..., P)."""
        if self.count == 1:
            return values
        runs = [values[..., g, None].expand(*values.shape[:-1], n) for g, n in self._runs()]
        return torch.cat(runs, dim=-1)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over each group, shape (..., P) to (..., count)."""
        if self.count == 1:
            return values.sum(-1, keepdim=True)
        totals = [values.new_zeros(values.shape[:-1]) for _ in range(self.count)]
        for group, part in zip(self.index, values.split(self.sizes, dim=-1), strict=True):
            totals[group] = totals[group] + part.sum(-1)
        return torch.stack(totals, dim=-1)

    def lengths(self) -> list[int]:
        """The number of weights of each group."""
        lengths = [0] * self.count
        for group, size in self._runs():
            lengths[group] += size
        return lengths

    def _runs(self) -> list[tuple[int, int]]:
        return list(zip(self.index, self.sizes, strict=True))


class SSGLRule:
    """
    The latents' arithmetic for one model's SSGL sites.

    :param Structure structure: the model's structure.
    :raises ModelError: if the prior leaves (7) without a value.
    """

    def __init__(self, structure: Structure) -> None:
        blocks = structure.sparse
        sizes = tuple(block.size for block in blocks)
        like = {"dtype": structure.dtype, "device": structure.device}
        self.size = sum(sizes)
        self.v0 = _common([block.v0 for block in blocks], sizes, like)
        self.v1 = _common([block.v1 for block in blocks], sizes, like)
        self.sigmas: tuple[Sigma, ...] = structure.sigmas
        self.deltas: tuple[Delta, ...] = structure.deltas
        self.sigma_groups = Groups(sizes, tuple(b.sigma for b in blocks), len(self.sigmas))
        self.delta_groups = Groups(sizes, tuple(b.delta for b in blocks), len(self.deltas))
        self._nu = torch.tensor([s.nu for s in self.sigmas], **like)
        self._nu_lambda = torch.tensor([s.nu_lambda for s in self.sigmas], **like)
        self._a = torch.tensor([d.a for d in self.deltas], **like)
        self._b = torch.tensor([d.b for d in self.deltas], **like)
        self._sigma_sizes = torch.tensor(self.sigma_groups.lengths(), **like)
        self._delta_sizes = torch.tensor(self.delta_groups.lengths(), **like)
        self._sigma_learned = torch.tensor([s.site is not None for s in self.sigmas])
        self._delta_learned = torch.tensor([d.site is not None for d in self.deltas])
        self._sigma_learned = self._sigma_learned.to(structure.device)
        self._delta_learned = self._delta_learned.to(structure.device)
        self._any_sigma = any(s.site is not None for s in self.sigmas)
        self._any_delta = any(d.site is not None for d in self.deltas)
        for delta, size in zip(self.deltas, self.delta_groups.lengths(), strict=True):
            if delta.site is not None and delta.a + delta.b + size - 2.0 <= 0.0:
                raise ModelError(
                    f"site {delta.site!r} ~ Beta({delta.a}, {delta.b}) with {size} weights has no "
                    "mode for equation (7); use parameters of at least 1"
                )

    def init(self, initial: Mapping[str, Tensor], request: StochasticApproximation) -> SSGLLatents:
        """
        The latents before the first step.

        :param initial: first values of the learned sites (sigma squared and delta), by name.
        :param StochasticApproximation request: the first rho and kappa.
        """
        like = {"dtype": self._nu.dtype, "device": self._nu.device}
        sigma = [_first(s, initial).sqrt() if s.site else _first(s, initial) for s in self.sigmas]
        delta = [_first(d, initial) for d in self.deltas]
        rho = torch.full((self.size,), request.initial_inclusion, **like)
        if request.initial_penalty is None:
            slab, excess = rho.clone(), 0.0
        else:
            kappa = request.initial_penalty
            slab = torch.zeros_like(rho) + kappa * self.v1
            excess = kappa * self.v0 + kappa * self.v1 - 1.0
        return SSGLLatents(
            rho, slab, excess, torch.stack(sigma).to(**like), torch.stack(delta).to(**like)
        )

    def update(
        self,
        latents: SSGLLatents,
        beta: Tensor,
        residuals: Mapping[str, Residuals],
        weight: float,
    ) -> SSGLLatents:
        """
        One sweep of (8) over rho, kappa, sigma and delta, in the order of Algorithm 1.

        :param SSGLLatents latents: the latents before it.
        :param Tensor beta: the sparse slab after the step, shape (..., P).
        :param residuals: of the likelihoods with a learned sigma, before the step, by site.
        :param float weight: omega at this step.
        """
        rho, slab, excess, sigma, delta = latents
        spread_sigma = self.sigma_groups.spread(sigma)
        logit = inclusion_logit(
            beta, self.v0, self.v1, self.delta_groups.spread(delta), spread_sigma
        )
        rho = stochastic_approximation(rho, torch.sigmoid(logit), weight)
        slab = stochastic_approximation(slab, rho, weight)
        excess = (1.0 - weight) * excess
        if self._any_sigma:
            new = self._scale(beta, slab, excess, residuals)
            new = torch.where(self._sigma_learned, new, sigma)
            sigma = stochastic_approximation(sigma, new, weight)
        if self._any_delta:
            total = self.delta_groups.sum(rho)
            new = sparsity_update(total, self._delta_sizes, self._a, self._b)
            new = torch.where(self._delta_learned, new, delta)
            delta = stochastic_approximation(delta, new, weight)
        return SSGLLatents(rho, slab, excess, sigma, delta)

    def _scale(
        self,
        beta: Tensor,
        slab: Tensor,
        excess: float | Tensor,
        residuals: Mapping[str, Residuals],
    ) -> Tensor:
        """sigma tilde of equation (6), shape (..., S)."""
        kappa0, kappa1 = penalties(slab, excess, self.v0, self.v1)
        absolute = self.sigma_groups.sum(kappa0 * beta.abs())
        square = self.sigma_groups.sum(kappa1 * beta * beta)
        count = self._sigma_sizes
        for index, sigma in enumerate(self.sigmas):
            for site in sigma.likelihoods:
                here = torch.zeros_like(self._nu)
                here[index] = 1.0
                square = square + residuals[site].square.unsqueeze(-1) * here
                count = count + residuals[site].count * here
        return scale_update(absolute, square, count, self._nu, self._nu_lambda)

    def gradient(self, latents: SSGLLatents, beta: Tensor) -> Tensor:
        """The prior's part of the gradient (2) at the sparse slab, shape (..., P)."""
        kappa0, kappa1 = penalties(latents.slab, latents.excess, self.v0, self.v1)
        return prior_gradient(beta, kappa0, kappa1, self.sigma_groups.spread(latents.sigma))

    def potential(self, latents: SSGLLatents, beta: Tensor) -> Tensor:
        r"""The prior's part of -Q, :math:`\sum \kappa_0 |\beta|/\sigma + \kappa_1 \beta^2/2\sigma^2`."""
        kappa0, kappa1 = penalties(latents.slab, latents.excess, self.v0, self.v1)
        scaled = beta / self.sigma_groups.spread(latents.sigma)
        return (kappa0 * scaled.abs() + 0.5 * kappa1 * scaled * scaled).sum(-1)

    def site_values(self, latents: SSGLLatents) -> dict[str, Tensor]:
        """The learned sites' values, sigma squared and delta, each of shape (...)."""
        values = {
            s.site: latents.sigma[..., i].square() for i, s in enumerate(self.sigmas) if s.site
        }
        values |= {d.site: latents.delta[..., i] for i, d in enumerate(self.deltas) if d.site}
        return values

    def sparsity(self, latents: SSGLLatents) -> Tensor:
        """
        The fraction of sparse weights that rather belong to the spike, the narrower of the two
        components: rho below 1/2 where it is the Laplace, above where it is the Gaussian.
        """
        laplace_is_spike = torch.as_tensor(2.0 * self.v0 * self.v0 < self.v1)
        spike = torch.where(
            laplace_is_spike.to(latents.rho.device), latents.rho < 0.5, latents.rho > 0.5
        )
        return spike.to(latents.rho.dtype).mean(-1)

    def collapsed(self, latents: SSGLLatents) -> list[str]:
        """Learned delta sites that have run into 0 or 1: under 1/1000 weight expected on a side."""
        expected = latents.delta * self._delta_sizes
        rest = self._delta_sizes - expected
        low = torch.minimum(expected, rest).reshape(-1, len(self.deltas)).amin(0) < 1e-3
        return [d.site for d, bad in zip(self.deltas, low.tolist(), strict=True) if d.site and bad]


def _first(group: Sigma | Delta, initial: Mapping[str, Tensor]) -> Tensor:
    if group.site is not None:
        return initial[group.site].detach()
    return torch.tensor(group.fixed)


def _common(values: list[float | Tensor], sizes: tuple[int, ...], like: dict) -> float | Tensor:
    """One number where all blocks share it, else a tensor of shape (P,)."""
    if all(isinstance(value, float) for value in values) and len(set(values)) == 1:
        return values[0]
    parts = [
        torch.as_tensor(value, **like).reshape(-1).expand(size)
        for value, size in zip(values, sizes, strict=True)
    ]
    return torch.cat(parts)
