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

import torch
from torch import Tensor


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
