# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The options of adaptation by Gibbs sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pyro_aeb.latents.contract import LatentUpdate
from pyro_aeb.validation import count, flag, set_fields


@dataclass(frozen=True)
class Gibbs:
    """
    Sample the latents of spike-and-slab priors together with the weights, from their joint
    posterior: gamma, sigma and delta are drawn in scans between the steps of the weights.

    :param int every: the steps of the weights from scan to scan.
    :param bool flips: whether gammas are drawn with their weights summed out, by one gradient of
        all data a scan, one for every gamma that is to change and, where they are 16 or fewer, one
        for every unit in the slab, whose weights are drawn anew; the steps in between move all
        weights given gamma. False sums gamma out of the steps instead, and draws it given the
        weights when sigma and delta are drawn: cheaper a scan, and slower to change a gamma; with
        thousands of weights a chain may keep those that it began with.

    A scan takes the gradient of all data, by N / n runs of the model where a plate takes n of N.
    Beside flips it takes two where a sigma is learned. A width v0 of the spikes that is learned
    (:func:`~pyro_aeb.priors.spike_width`) is drawn by six more. With a likelihood that is quadratic
    in the weights, a Normal one of a linear model, every flip and every sigma is accepted; with any
    other by a Metropolis ratio, ``flips_accepted`` over ``flips_proposed`` in ``sample_stats``. The
    first scan, and scans 2, 4, 8 and so on of warm-up, are not counted: they take the curvature of
    the likelihood anew and let strong effects in, the strongest first, by moves that are shortened
    until the likelihood bears them out. So a likelihood that is not quadratic takes warm-up.

    The law is the posterior at ``inverse_temperature=1``, up to the error of the transition's step;
    other temperatures, pruning and data from a loader are refused. The sites of sigma and delta are
    then draws. Latents of other kinds (``latents=`` of
    :class:`~pyro_aeb.adaptation.options.StochasticApproximation`) are sampled with the weights.
    """

    every: int = 10
    flips: bool = True
    latents: ClassVar[Mapping[str, LatentUpdate]] = {}
    """There are no latents of a user's own."""

    def __init__(self, every: int = 10, flips: bool = True) -> None:
        set_fields(
            self,
            every=count("Gibbs: every", every, "the steps from scan to scan"),
            flips=flag("Gibbs: flips", flips),
        )
