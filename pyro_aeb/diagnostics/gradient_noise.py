# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The injected noise of a step, compared with the noise of its minibatch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_aeb.diagnostics.frozen_chain import FrozenChain, freeze
from pyro_aeb.transitions import TargetTransition


class NoiseRatio(NamedTuple):
    """
    Noise of a step at one site.

    :param str site: name of the site, or ``"all"`` for the whole position.
    :param float injected: variance of a step due to the injected noise, averaged over coordinates.
    :param float minibatch: variance of a step due to the choice of the minibatch, likewise.
    :param float ratio: injected over minibatch variance; infinite if every batch holds all data.
        The chain's temperature is about 1 + 1/ratio times its target, so the ratio should be well
        above 10.
    """

    site: str
    injected: float
    minibatch: float
    ratio: float


def noise_ratio(mcmc: MCMC, minibatches: int = 16, chain: int = 0) -> list[NoiseRatio]:
    """
    Compare the variance of the injected noise with that of the minibatch gradient.

    Gradients are computed on fresh minibatches at the run's current position, with the latents
    frozen; how a step responds to noise and gradient is measured on the transition itself. The
    relative standard error of a ratio is about sqrt(2 / (minibatches - 1)), divided by the square
    root of the number of coordinates if these are independent.

    The ratio is that of a single step. With minibatches by permutation the errors of one epoch
    nearly cancel, which it does not show.

    :param MCMC mcmc: a run of an AEBKernel, whose chain is in this process.
    :param int minibatches: number of gradients, at least 2.
    :param int chain: number of the chain.
    :returns: the ratio of all weights together, then of every site.
    :raises TypeError: if ``mcmc`` is not a run of an AEBKernel.
    :raises RuntimeError: if the run has no draws, or the chain is not in this process.
    :raises ValueError: if the transition evaluates Q itself, so that its step is not a function of
        one gradient.
    """
    if minibatches < 2:
        raise ValueError(f"minibatches is {minibatches}, expected at least 2, for a variance")
    with freeze(mcmc, chain, "noise_ratio()") as frozen:
        gradients = frozen.minibatch_gradients(minibatches).double()
        noise_response, gradient_response = _responses(frozen, gradients.mean(0))
        injected = noise_response.square()
        minibatch = gradients.var(0) * gradient_response.square()
        places = {"all": slice(None), **frozen.sites}
    ratios = []
    for site, place in places.items():
        numerator, denominator = float(injected[place].mean()), float(minibatch[place].mean())
        ratio = numerator / denominator if denominator > 0.0 else torch.inf
        ratios.append(NoiseRatio(site, numerator, denominator, ratio))
    return ratios


def _responses(frozen: FrozenChain, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far one step moves each weight per unit of noise, and per unit of gradient."""
    transition, numbers = frozen.kernel.transition, frozen.numbers
    if isinstance(transition, TargetTransition):
        raise ValueError(
            f"noise_ratio() needs a step that uses one gradient, and {transition!r} evaluates "
            "others than the one that it is given; use step_halving()"
        )
    state = type(frozen.state)(*(v.double() if v.is_floating_point() else v for v in frozen.state))
    zero, one = torch.zeros_like(gradient), torch.ones_like(gradient)

    def move(gradient: Tensor, noise: Tensor) -> Tensor:
        return transition.step(state, gradient.clone(), noise.clone(), numbers).position

    origin = move(gradient, zero)
    # A change of 1 may be lost in rounding next to a large gradient: scale it to the gradient.
    change = gradient.abs().clamp_min(1.0)
    return move(gradient, one) - origin, (move(gradient + change, zero) - origin) / change
