# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Scans of a chain, in which its latents are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyro_aeb.adaptation.draws import Random
from pyro_aeb.adaptation.sweep import Adaptation
from pyro_aeb.data.minibatches import StepData
from pyro_aeb.errors import ModelError
from pyro_aeb.model.side_effects import Buffers
from pyro_aeb.posterior.posterior import Posterior
from pyro_aeb.posterior.whole_data import WholeData


class Scan:
    """
    Draws the latents of a chain after some of its steps, or learns those that take all data.

    :param WholeData whole: the likelihood.
    :param weight: of (8), for a chain after its last step; None where latents are drawn.
    :param generators: sources of the random numbers of every chain.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        whole: WholeData,
        weight: Callable[[Any], float] | None,
        generators: Sequence[torch.Generator | None],
    ) -> None:
        self._adaptation = adaptation
        self._weight = weight
        self._whole = whole
        self._generators = generators

    @torch.no_grad()
    def __call__(self, chain: Any) -> None:
        """Make a scan, if one follows the chain's last step."""
        if chain.latents is None or self.steps_left(chain.step - 1) > 1:
            return
        position = chain.state.position
        random = Random(self._generators, chain.shape, position.device)
        position, chain.latents = self._adaptation.scan(
            position,
            chain.latents,
            self._whole,
            random,
            chain.step,
            chain.warming_up,
            0.0 if self._weight is None else self._weight(chain),
        )
        chain.state = chain.state._replace(position=position)

    @torch.no_grad()
    def limit_steps(self, chain: Any) -> None:
        """Bound the first steps of a chain whose steps grow with the width of the spikes."""
        if self._adaptation.learns_width:
            position = chain.state.position
            random = Random(self._generators, chain.shape, position.device)
            chain.latents = self._adaptation.limit_steps(
                position, chain.latents, self._whole, random
            )

    def steps_left(self, step: int) -> int:
        """Return the number of steps from a step to the next scan."""
        return self._adaptation.steps_to_scan(step)


def make_scan(
    posterior: Posterior,
    data: StepData,
    buffers: Buffers,
    weight: Callable[[Any], float],
    generators: Sequence[torch.Generator | None],
) -> Scan | None:
    """
    Make the scans of a chain whose first potential has been computed; None where there are none.

    :param weight: of (8), for a chain after its last step.
    :raises ModelError: if the data or the likelihood are such that they cannot be.
    """
    adaptation = posterior.adaptation
    if not adaptation.scans:
        return None
    is_gibbs = adaptation.is_sampled
    if data.cover is None or data.fixed is None:
        what = "adaptation=Gibbs() draws the latents" if is_gibbs else "the width v0 is learned"
        other = "use StochasticApproximation" if is_gibbs else "make v0 a number"
        raise ModelError(
            f"{what} given all data, and the data come from a "
            "DataLoader, which gives batches only; pass the data as tensors, to a model that takes "
            f"a part of them in pyro.plate(..., subsample_size=...), or {other}"
        )
    if is_gibbs and (scored := sorted(posterior.as_written.scored_scales)):
        raise ModelError(
            f"the learned sigma is the scale of {scored}, expected Normal likelihoods whose scale "
            "is a fixed multiple of sigma, as Gibbs draws sigma from its law under those; give the "
            "likelihood a scale of its own, or use StochasticApproximation"
        )
    whole = WholeData(posterior, data.fixed, data.cover, buffers)
    return Scan(adaptation, whole, None if is_gibbs else weight, generators)
