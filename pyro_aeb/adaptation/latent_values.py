# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The values of the latents of spike-and-slab sites, by what is learned of them and how.

The averaged responsibilities of both components are kept as one array. With ``slab`` the running
average of rho, that of the slab is ``slab`` and that of the spike ``1 + excess - slab``. For SSGL,
kappa1 is ``slab / v1`` and kappa0 is ``(1 + excess - slab) / v0``. The number ``excess`` is the
remainder of the first kappas, which decays by (1 - omega) a step.

With ``penalties="current"`` rho is that of (4) at the current weights wherever (5) takes it, and
``slab`` its value after the last step.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SpikeAndSlabLatents(NamedTuple):
    """
    The values of the latents of P sparse weights, S sigmas and L deltas; chains are a leading axis.

    :param Tensor rho: inclusion probabilities, shape (..., P).
    :param Tensor slab: running average of rho, which stands for kappa0 and kappa1, shape (..., P).
    :param excess: the remainder of the first kappas; see the module's docstring.
    :param Tensor sigma: scales, shape (..., S).
    :param Tensor delta: prior inclusion probabilities, shape (..., L).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor

    @property
    def width(self) -> Tensor | None:
        """The width v0 of the spikes, None where it is fixed."""
        return None


class LatentsWithWidth(NamedTuple):
    """
    The values of :class:`SpikeAndSlabLatents` and, where it is learned, of the spikes' width.

    :param Tensor width: v0, shape (..., 1).
    :param Tensor curvature_of_width: running average of h of :mod:`pyro_aeb.adaptation.width`,
        shape (..., 1), 0 before the first.
    :param Tensor largest_curvature: as in :class:`GibbsLatentsWithWidth`.
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor
    width: Tensor
    curvature_of_width: Tensor
    largest_curvature: Tensor


class GibbsLatents(NamedTuple):
    """
    The values of latents that are drawn, of P sparse weights, S sigmas and L deltas.
    Its first fields are those of :class:`SpikeAndSlabLatents`.

    :param Tensor rho: the probabilities that gammas were drawn with in the last scan, (..., P).
    :param Tensor slab: gamma, shape (..., P), 0 or 1.
    :param excess: 0.
    :param Tensor sigma: scales, shape (..., S).
    :param Tensor delta: prior inclusion probabilities, shape (..., L).
    :param Tensor curvature: minus the second derivatives of the log likelihood within every unit,
        where sigma is the scale of a likelihood in units of it; empty without flips.
    :param Tensor counts: of flips proposed and accepted, and of sigmas proposed and accepted, since
        the start, shape (..., 4).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor
    curvature: Tensor
    counts: Tensor

    @property
    def width(self) -> Tensor | None:
        """The width v0 of the spikes, None where it is fixed."""
        return None


class GibbsLatentsWithWidth(NamedTuple):
    """
    The values of :class:`GibbsLatents` and, where it is drawn, of the spikes' width.

    :param Tensor counts: also of steps of v0 proposed and accepted, shape (..., 6).
    :param Tensor width: v0, shape (..., 1).
    :param Tensor largest_curvature: that of the log likelihood in warm-up, times the square of the
        smallest sigma where sigmas are scales of a likelihood; shape (..., 1).
    """

    rho: Tensor
    slab: Tensor
    excess: float | Tensor
    sigma: Tensor
    delta: Tensor
    curvature: Tensor
    counts: Tensor
    width: Tensor
    largest_curvature: Tensor


AveragedLatents = SpikeAndSlabLatents | LatentsWithWidth
DrawnLatents = GibbsLatents | GibbsLatentsWithWidth
WithWidth = LatentsWithWidth | GibbsLatentsWithWidth
AnyLatents = AveragedLatents | DrawnLatents
