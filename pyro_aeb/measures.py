# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the last step before a draw tells of the sampler: how far the latents are from closing their
equations, and how many weights pruning has let go of or taken since the draw before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_aeb.ssgl_rule import SSGLLatents
from pyro_aeb.structure import Structure


def latent_residuals(
    before: SSGLLatents, after: SSGLLatents, weight: float, structure: Structure
) -> dict[str, Tensor]:
    r"""
    :math:`\|\tilde\theta - \theta\|` for rho, and for sigma and delta where they are learned, each
    of shape (...). Equation (8) moves a latent by :math:`\omega (\tilde\theta - \theta)`, so the
    step that was made tells, without another sweep. NaN where omega is 0 and nothing moved.

    :param SSGLLatents before: the latents before a step.
    :param SSGLLatents after: and after it.
    :param float weight: omega at this step.
    :param Structure structure: of the model.
    """
    learned = {
        "rho": True,
        "sigma": any(sigma.site for sigma in structure.sigmas),
        "delta": any(delta.site for delta in structure.deltas),
    }
    scale = 1.0 / weight if weight > 0.0 else torch.nan
    return {
        f"sa_residual_{name}": (getattr(after, name) - getattr(before, name)).norm(dim=-1) * scale
        for name, there in learned.items()
        if there
    }


class Flips:
    """
    Counts the weights that have become zero, or have ceased to be, from one draw to the next.

    :param Tensor position: where the chain starts, shape (..., D).
    """

    def __init__(self, position: Tensor) -> None:
        self.zero = position == 0.0

    def count(self, position: Tensor) -> Tensor:
        """How many since the last call, shape (...)."""
        now = position == 0.0
        flipped = torch.count_nonzero(now != self.zero, dim=-1)
        self.zero.copy_(now)
        return flipped
