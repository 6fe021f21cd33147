# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latents of a spike-and-slab prior and how they are learned: equations (2) and (6)-(8).

The sampler conditions on the latents while it moves the weights: the inclusion probabilities rho,
the penalties kappa0 and kappa1, the scales sigma and the prior inclusion probabilities delta. After
every step of the weights each moves by a weight omega towards the solution of its equation. Each
equation is here once, except (4) and (5), which depend on the prior; see
:mod:`pyro_aeb.priors.components`. ``SpikeAndSlabRule`` applies them to a model.

**References**

[1] Wei Deng, Xiao Zhang, Faming Liang, Guang Lin (2019), "An adaptive empirical Bayesian method
    for sparse deep learning", NeurIPS, arXiv 1910.10791. Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_aeb.priors.components import Number
from pyro_aeb.priors.scales import ScaleTerms

SCALE_STEPS = 6
"""The Newton steps of :func:`scale_mode`, enough to come from a factor of 1000."""


def add_prior_gradient(
    gradient: Tensor,
    beta: Tensor,
    linear: Tensor | None,
    quadratic: Tensor | None,
    sigma: Tensor,
) -> None:
    r"""
    Add to ``gradient`` the prior's part of equation (2), :math:`-L\, \mathrm{sign}(\beta) / \sigma
    - K \beta / \sigma^2`, with sign(0) = 0; L and K are :math:`\kappa_0` and :math:`\kappa_1` of
    SSGL. All of shape (..., P), but for sigma, which broadcasts.

    :param linear: L of ``pyro_aeb.priors.components.penalties``, None where there is none.
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


def scale_mode(
    absolute: Tensor, square: Tensor, count: Number, terms: ScaleTerms, start: Tensor
) -> Tensor:
    r"""
    Equation (6) under another prior of sigma, the maximiser of Q over sigma: the root of

    .. math::

        p = B / \sigma + C / \sigma^2 + c - r \sigma - h \sigma^2 - 2 \sigma^2 / (g^2 + \sigma^2)

    with p = ``count``, B = ``absolute`` and C = ``square``, as in :func:`scale_update`. Sorted by
    sign, it says that one sum of powers of sigma that falls is one that rises. Newton's method in
    :math:`\log \sigma` solves for the logarithm of their ratio, whose slope is between -4 and -1.

    :param ScaleTerms terms: c, r, h and g squared.
    :param Tensor start: any positive sigma, such as the last one.
    """
    rest = count - terms.constant
    more, fewer = _positive(-rest), _positive(rest)
    square = square.clamp(min=torch.finfo(square.dtype).tiny ** 0.5)  # all weights may be zero
    sigma = start
    for _ in range(SCALE_STEPS):
        variance = sigma.square()
        first, second = absolute / sigma, square / variance
        falling = first + second + more
        rising: Any = fewer
        bend: Any = 0.0
        if terms.linear is not None:
            term = terms.linear * sigma
            rising, bend = rising + term, bend + term
        if terms.quadratic is not None:
            term = terms.quadratic * variance
            rising, bend = rising + term, bend + 2.0 * term
        if terms.cauchy is not None:
            share = variance / (terms.cauchy + variance)
            rising, bend = rising + 2.0 * share, bend + 4.0 * share * (1.0 - share)
        slope = (first + 2.0 * second) / falling + bend / rising
        sigma = sigma * ((falling / rising).log() / slope).exp()
    return sigma


def _positive(x: Number) -> Number:
    return x.clamp(min=0.0) if isinstance(x, Tensor) else max(x, 0.0)


def beta_counts(
    size: float | Tensor, a: float | Tensor, b: float | Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """
    Return the constants of :func:`beta_mode`, a - 1 and a + b + p - 2.

    :param size: p, the number of weights of this delta.
    :param a: first parameter of the Beta prior.
    :param b: second parameter of the Beta prior.
    """
    return a - 1.0, a + b + size - 2.0


def beta_mode(total: Tensor, ones: float | Tensor, count: float | Tensor) -> Tensor:
    r"""
    Equation (7), :math:`(\sum_j \rho_j + a - 1) / (a + b + p - 2)`, kept inside (0, 1).

    :param Tensor total: :math:`\sum_j \rho_j` over the weights of this delta.
    :param ones: a - 1, from :func:`beta_counts`.
    :param count: a + b + p - 2, from :func:`beta_counts`.
    """
    limits = torch.finfo(total.dtype)
    return ((total + ones) / count).clamp(limits.tiny, 1.0 - limits.eps)


def stochastic_approximation(old: Tensor, new: Tensor, weight: float | Tensor) -> Tensor:
    r"""Equation (8), :math:`\theta \leftarrow (1 - \omega) \theta + \omega \tilde\theta`."""
    return torch.lerp(old, new, weight)
