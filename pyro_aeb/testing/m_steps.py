# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""M-steps against autograd: at the result of an update the derivative of Q must be zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_aeb.testing.reports import Outcome, require

Bounds = tuple[float, float]


def check_m_step(
    q: Callable[[dict[str, Tensor]], Tensor],
    found: Mapping[str, Tensor],
    bounds: Mapping[str, Bounds] | None = None,
    tolerance: float | None = None,
) -> Outcome:
    r"""
    Check that every latent is at a maximum of Q in that latent, the others held fixed.

    The Newton step :math:`-Q'' ^{-1} Q'` by autograd is the distance to the maximum: it must be
    zero relative to the value, and the curvature negative. At a bound the derivative must point out
    of the domain instead.

    :param q: Q as a function of a dictionary of the latents' values, a differentiable scalar.
    :param found: results of the M-step by name, in float64. Small tensors: the full Hessian of each
        is computed.
    :param bounds: (lowest, highest) value of every latent with a bounded domain.
    :param float tolerance: largest Newton step relative to the value; by default 1e5 times the
        rounding error of the value's dtype, 2e-11 in float64.
    :raises AssertionError: if a latent is not at the maximum.
    """
    worst = 0.0
    for name, value in found.items():
        low, high = (bounds or {}).get(name, (-torch.inf, torch.inf))
        distance = _relative_distance(q, dict(found), name, low, high)
        allowed = tolerance or 1e5 * torch.finfo(value.dtype).eps
        worst = max(worst, distance)
        require(
            distance <= allowed,
            f"M-step of {name!r}",
            f"{_format(value)}, with the maximum of Q a relative {distance:.3g} away",
            f"at most {allowed:.2g}",
            "the derivative of Q is not zero at the update: compare it with the priors and the "
            "likelihood of the model",
        )
    return Outcome("M-steps", f"{', '.join(found)} at the maximum of Q, off by {worst:.1g}")


def _format(value: Tensor) -> str:
    return f"{float(value):.6g}" if value.numel() == 1 else f"a tensor of {tuple(value.shape)}"


def _relative_distance(
    q: Callable[[dict[str, Tensor]], Tensor],
    values: dict[str, Tensor],
    name: str,
    low: float,
    high: float,
) -> float:
    """Return the largest relative Newton step of one latent; infinity if there is no maximum."""
    value = values[name].detach()

    def q_of_latent(flat: Tensor) -> Tensor:
        return q({**values, name: flat.reshape(value.shape)})

    flat = value.reshape(-1).clone().requires_grad_()
    total = q_of_latent(flat)
    (slope,) = torch.autograd.grad(total, flat) if total.requires_grad else (flat.detach() * 0,)
    at_low, at_high = flat.detach() <= low, flat.detach() >= high
    if bool((at_low & (slope > 0)).any()) or bool((at_high & (slope < 0)).any()):
        return float("inf")
    free = ~(at_low | at_high)
    if not bool(free.any()):
        return 0.0
    hessian = torch.autograd.functional.hessian(q_of_latent, flat.detach())[free][:, free]
    if not bool(torch.linalg.eigvalsh(hessian).max() < 0.0):
        return float("inf")
    step = torch.linalg.solve(hessian, slope[free])
    return float((step / flat.detach()[free].abs().clamp(min=1e-300)).abs().max())
