# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the last step before a draw tells of the sampler: how far the latents are from closing their
equations, and how many weights pruning has let go of or taken since the draw before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_aeb.adaptation.spike_and_slab import SSGLLatents
from pyro_aeb.latents.contract import Seen
from pyro_aeb.model.structure import Residuals, Structure


def latent_residuals(
    before: Latents, after: Latents, weight: float, structure: Structure
) -> dict[str, Tensor]:
    r"""
    :math:`\|\tilde\theta - \theta\|` for rho, for sigma and delta where they are learned, and for
    every site that an update of its own learns, each of shape (...). Equation (8) moves a latent by
    :math:`\omega (\tilde\theta - \theta)`, so the step that was made tells, without another sweep.
    NaN where omega is 0 and nothing moved.

    :param Latents before: the latents before a step.
    :param Latents after: and after it.
    :param float weight: omega at this step.
    :param Structure structure: of the model.
    """
    scale = 1.0 / weight if weight > 0.0 else torch.nan
    residuals = {}
    if before.ssgl is not None and after.ssgl is not None:
        learned = {
            "rho": True,
            "sigma": any(sigma.site for sigma in structure.sigmas),
            "delta": any(delta.site for delta in structure.deltas),
        }
        for name in (name for name, there in learned.items() if there):
            moved = getattr(after.ssgl, name) - getattr(before.ssgl, name)
            residuals[name] = moved.norm(dim=-1) * scale
    for site in structure.learned:
        moved = after.sites[site.name] - before.sites[site.name]
        flat = moved.reshape((*moved.shape[: moved.dim() - len(site.shape)], -1))
        residuals[site.name] = flat.norm(dim=-1) * scale
    return {f"sa_residual_{name}": residual for name, residual in residuals.items()}


class Statistics(NamedTuple):
    """
    What latents are learned from.

    :param dict residuals: of the observed Normal sites whose scale is learned, by name.
    :param dict seen: for the sites that updates of their own learn, by name.
    """

    residuals: dict[str, Residuals]
    seen: dict[str, Seen]


class Latents(NamedTuple):
    """
    All that is learned.

    :param SSGLLatents ssgl: the latents of SSGL sites, None where there are none.
    :param dict sites: the values of sites that updates of their own learn, by name, and beside them
        the statistics of those that average statistics.
    """

    ssgl: SSGLLatents | None
    sites: dict[str, Tensor]
