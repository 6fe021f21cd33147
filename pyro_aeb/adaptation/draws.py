# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Exact draws of the latents of a spike-and-slab prior, from their conditional laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_aeb.priors.scales import ScaleTerms

WALK = 20
"""Steps of :func:`walk_scale`: some four autocorrelation times."""


class Random:
    """
    Random numbers in double precision, each chain's from its own generator, so that a chain gets
    those that it would get alone.

    :param generators: one for every chain; None for torch's global one.
    :param torch.Size shape: (C,) of C chains that step together, () of one.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator | None],
        shape: torch.Size,
        device: torch.device,
    ) -> None:
        self._generators = generators
        self._shape = shape
        self._device = device

    def uniform(self, size: int, active: Tensor | None = None) -> Tensor:
        """
        Draw numbers in (0, 1), shape (..., size).

        :param active: whether a chain draws, shape (...); the others get 1/2. By default all do.
        """
        smallest = torch.finfo(torch.float64).tiny

        def draw(generator: torch.Generator | None, _: int | tuple[()]) -> Tensor:
            empty = torch.empty(size, dtype=torch.float64, device=self._device)
            return empty.uniform_(generator=generator).clamp_(min=smallest)

        return self._of_chains(draw, (size,), active)

    def gamma(self, concentration: Tensor, active: Tensor | None = None) -> Tensor:
        """Draw Gamma variables of rate 1, shape (..., n), those of the chains that draw."""

        def draw(generator: torch.Generator | None, chain: int | tuple[()]) -> Tensor:
            return torch._standard_gamma(concentration[chain], generator=generator)

        return self._of_chains(draw, concentration.shape[-1:], active)

    def _of_chains(
        self,
        draw: Callable[[torch.Generator | None, int | tuple[()]], Tensor],
        shape: Sequence[int],
        active: Tensor | None,
    ) -> Tensor:
        if not self._shape:
            return draw(self._generators[0], ())
        rest = torch.full(tuple(shape), 0.5, dtype=torch.float64, device=self._device)
        which = [True] * len(self._generators) if active is None else active.tolist()
        rows = zip(self._generators, which, strict=True)
        return torch.stack([draw(g, i) if own else rest for i, (g, own) in enumerate(rows)])


def draw_scale(a: Tensor, b: Tensor, c: Tensor, random: Random) -> Tensor:
    r"""
    Draw sigma from the density :math:`\sigma^{-(A + 1)} \exp(-B / \sigma - C / 2 \sigma^2)`.

    With :math:`u = 1 / \sigma` and :math:`u^*` the positive root of :math:`C u^2 + B u = A`, a
    proposal from Gamma(A, rate :math:`B + C u^*`) is accepted with probability
    :math:`\exp(-C (u - u^*)^2 / 2)`, for B >= 0 in seven cases of ten or more. Where
    :math:`B u^* < -A`, which makes that rare, and A >= 1, it is one from Normal(u', 1 / C) with
    probability :math:`\exp((A - 1) (\log(u / u') - u / u' + 1))`, in seven of ten, too; u' is the
    mode, the root for A - 1.

    :param Tensor a: A > 0, shape (..., S).
    :param Tensor b: B, of any sign.
    :param Tensor c: C > 0.
    :returns: NaN where one of them is not finite, as in a chain that has diverged.
    """
    peak = _positive_root(a, b, c)
    is_normal = (b * peak < -a) & (a >= 1.0)
    mode = torch.where(is_normal, _positive_root((a - 1.0).clamp(min=0.0), b, c), peak)
    waiting = (a + b + c + peak + mode).isfinite()
    drawn = torch.where(waiting, 1.0, torch.nan).to(a)
    while bool((active := waiting.any(-1)).any()):
        proposal = random.gamma(a, active) / (b + c * peak)
        log_ratio = -0.5 * c * (proposal - peak).square()
        if bool((own := active & is_normal.any(-1)).any()):
            normal = mode + torch.special.ndtri(random.uniform(a.shape[-1], own)) / c.sqrt()
            share = normal / mode
            of_normal = (a - 1.0) * (share.clamp(min=0.0).log() - share + 1.0)
            of_normal = torch.where(normal > 0.0, of_normal, -torch.inf)
            proposal = torch.where(is_normal, normal, proposal)
            log_ratio = torch.where(is_normal, of_normal, log_ratio)
        accepted = random.uniform(a.shape[-1], active).log() < log_ratio
        accepted = accepted & waiting & active.unsqueeze(-1)
        drawn, waiting = torch.where(accepted, proposal, drawn), waiting & ~accepted
    return 1.0 / drawn


def _positive_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the root of c u^2 + b u = a that is not negative, without cancellation."""
    root = (b.square() + 4.0 * a * c).sqrt()
    return torch.where(b > 0.0, 2.0 * a / (b + root), (root - b) / (2.0 * c))


def walk_scale(
    sigma: Tensor, count: Tensor, b: Tensor, c: Tensor, terms: ScaleTerms, random: Random
) -> Tensor:
    r"""
    Move sigma by a random walk of its logarithm, whose law is the density
    :math:`\sigma^{-n} \exp(-B / \sigma - C / 2 \sigma^2) \pi(\sigma)`.

    :param Tensor sigma: shape (..., S).
    :param Tensor count: n, the same before and after.
    :param ScaleTerms terms: of :math:`\pi`, the slope of its logarithm in :math:`\log \sigma`.
    """
    step = 2.4 / (2.0 * count + 2.0).sqrt()

    def log_density(x: Tensor) -> Tensor:  # of the logarithm of sigma
        s = x.exp()
        return -count * x - b / s - 0.5 * c / s.square() + log_scale_density(x, terms) + x

    x = sigma.log()
    now = log_density(x)
    for _ in range(WALK):
        move = torch.special.ndtri(random.uniform(sigma.shape[-1]))
        proposal = x + step * move
        new = log_density(proposal)
        accepted = random.uniform(sigma.shape[-1]).log() < new - now
        x, now = torch.where(accepted, proposal, x), torch.where(accepted, new, now)
    return x.exp()


def log_scale_density(x: Tensor, terms: ScaleTerms) -> Tensor:
    """
    Return the log density of a prior of sigma at log(sigma), up to a constant: the integral of the
    slope that :class:`~pyro_aeb.priors.scales.ScaleTerms` describes.
    """
    density = terms.constant * x
    if terms.linear is not None:
        density = density - terms.linear * x.exp()
    if terms.quadratic is not None:
        density = density - 0.5 * terms.quadratic * (2.0 * x).exp()
    if terms.cauchy is not None:
        density = density - ((2.0 * x).exp() / terms.cauchy).log1p()
    return density


def draw_beta(ones: Tensor, zeros: Tensor, random: Random) -> Tensor:
    """Draw from Beta(ones, zeros), shape (..., L)."""
    first, second = random.gamma(ones), random.gamma(zeros)
    return first / (first + second)


def draw_mixing(df: Tensor, square: Tensor, random: Random) -> Tensor:
    r"""
    Draw the variances :math:`\lambda` of a Student's t as a mixture of Normals given the values:
    InverseGamma((n + 1) / 2, (n + u^2 / v) / 2); and from their prior, InverseGamma(n / 2, n / 2),
    where ``square`` is negative.

    :param Tensor df: n, shape (..., P).
    :param Tensor square: :math:`u^2 / v`, or -1 for no value.
    """
    known = square >= 0.0
    shape = 0.5 * (df + known.to(df))
    return 0.5 * (df + square.clamp(min=0.0)) / random.gamma(shape)
