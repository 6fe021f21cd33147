# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""How much of a step's randomness is injected, and how much comes with the minibatch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.diagnostics.frozen_chain import Frozen
from pyro_aeb.transitions import TargetTransition


class NoiseRatio(NamedTuple):
    """
    :param str site: a site, or ``"all"`` for the whole position.
    :param float injected: variance of a step's injected noise, a mean over coordinates.
    :param float minibatch: variance of a step that the choice of minibatch causes, likewise.
    :param float ratio: of the first to the second; infinite where all data are in every batch. The
        chain is about 1 + 1/ratio times as hot as asked for, so it should be well above 10.
    """

    site: str
    injected: float
    minibatch: float
    ratio: float


def noise_ratio(mcmc: MCMC, minibatches: int = 16, chain: int = 0) -> list[NoiseRatio]:
    """
    The variance of the injected noise over that of the minibatch gradient's, from gradients on
    fresh minibatches where the run stands, with its latents held still. How a step responds to
    noise and gradient is read off the transition itself. The relative standard error of a ratio is
    about sqrt(2 / (minibatches - 1)), divided by the root of the number of coordinates where these
    are independent.

    A permutation takes every datum once in an epoch, so that errors of an epoch nearly cancel; the
    ratio is that of a single step and says nothing of it.

    :param MCMC mcmc: a run of an AEBKernel, whose chain is in this process; see
        ``Frozen``.
    :param int minibatches: how many gradients are computed, at least 2.
    :param int chain: which.
    :returns: first of all weights together, then of every site.
    :raises ValueError: if the transition asks for Q itself, so that a step is no function of one
        gradient.
    """
    if minibatches < 2:
        raise ValueError(f"minibatches is {minibatches}, expected at least 2, for a variance")
    with Frozen(mcmc, chain, "noise_ratio()") as frozen:
        gradients = frozen.minibatch_gradients(minibatches).double()
        noise, gain = _response(frozen, gradients.mean(0))
        injected, minibatch = noise.square(), gradients.var(0) * gain.square()
        sites = frozen.sites
    found = []
    for site, place in sites.items():
        ours, theirs = float(injected[place].mean()), float(minibatch[place].mean())
        found.append(NoiseRatio(site, ours, theirs, ours / theirs if theirs > 0.0 else torch.inf))
    return found


def _response(frozen: Frozen, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """By how much one step moves each weight for noise of size 1, and for gradient of size 1."""
    transition, numbers = frozen.kernel.transition, frozen.numbers
    if isinstance(transition, TargetTransition):
        raise ValueError(
            f"noise_ratio() reads off a step how it responds to its gradient, and {transition!r} "
            "takes others than the one that it is given; use step_halving()"
        )
    state = type(frozen.state)(*(v.double() if v.is_floating_point() else v for v in frozen.state))
    none, one = torch.zeros_like(gradient), torch.ones_like(gradient)

    def moved(gradient: Tensor, noise: Tensor) -> Tensor:
        return transition.step(state, gradient.clone(), noise.clone(), numbers).position

    rest = moved(gradient, none)
    # A gradient of 1 may be nothing next to the one that is there: take one of its own size.
    size = gradient.abs().clamp_min(1.0)
    return moved(gradient, one) - rest, (moved(gradient + size, none) - rest) / size
