# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
R-hat and effective sample size of ranks, for many coordinates at once: the numbers of
``arviz.rhat`` and ``arviz.ess``, which compute one coordinate after the other. In double precision,
whatever that of the draws.

See Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special, stats

Array = NDArray[Any]

BLOCK = 2**20
"""Numbers of draws that are looked at together."""

MAX_COORDINATES = 200
"""Number of coordinates of a site that are looked at, evenly spaced."""


def evenly_spaced(count: int, most: int = MAX_COORDINATES) -> Array:
    """Return at most so many of the numbers below ``count``."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def r_hat(draws: Array) -> Array:
    """
    Return R-hat of every coordinate: the larger of those of the ranks and the folded ranks of half
    chains. NaN where a draw is NaN, and for less than two chains of four draws.

    :param draws: of shape (chains, draws, coordinates).
    """
    if draws.shape[0] < 2:
        return np.full(draws.shape[-1], np.nan)
    return _by_block(_r_hat, draws)


def effective_size(draws: Array) -> Array:
    """
    Return the effective sample size of the ranks of every coordinate. NaN where a draw is NaN, and
    for less than four draws.

    :param draws: of shape (chains, draws, coordinates).
    """
    return _by_block(_effective_size, draws)


def _by_block(function: Callable[[Array], Array], draws: Array) -> Array:
    """Apply a function to the half chains of some coordinates at a time, which come first then."""
    chains, length, count = draws.shape
    result = np.full(count, np.nan)
    half = length // 2
    if length < 4:
        return result
    width = max(BLOCK // (chains * length), 1)
    for first in range(0, count, width):
        block = draws[..., first : first + width].transpose(2, 0, 1).astype(float)
        halves = np.concatenate([block[..., :half], block[..., -half:]], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # a coordinate that does not move
            values = function(halves)
        result[first : first + width] = np.where(np.isnan(block).any((1, 2)), np.nan, values)
    return result


def _r_hat(halves: Array) -> Array:
    """:param halves: of shape (coordinates, half chains, draws), as in all that follows."""
    folded = np.abs(halves - np.median(halves, axis=(1, 2), keepdims=True))
    found: Array = np.maximum(_plain_r_hat(_scores(halves)), _plain_r_hat(_scores(folded)))
    return found


def _scores(halves: Array) -> Array:
    """Return the normal scores of the ranks among all draws of a coordinate."""
    flat = halves.reshape(len(halves), -1)
    ranks = stats.rankdata(flat, axis=1)
    scores: Array = special.ndtri((ranks - 0.375) / (flat.shape[1] + 0.25))
    return scores.reshape(halves.shape)


def _plain_r_hat(x: Array) -> Array:
    length = x.shape[-1]
    between = length * x.mean(-1).var(-1, ddof=1)
    within = x.var(-1, ddof=1).mean(-1)
    ratio: Array = np.sqrt((between / within + length - 1) / length)
    return ratio


def _effective_size(halves: Array) -> Array:
    """Sum autocorrelations as long as pairs of them are positive and decrease (Geyer, 1992)."""
    x = _scores(halves)
    _, chains, length = x.shape
    centred = x - x.mean(-1, keepdims=True)
    spectrum = fft.rfft(centred, fft.next_fast_len(2 * length, real=True), axis=-1)
    power = (spectrum.real**2 + spectrum.imag**2).mean(1)  # of all chains, by lag
    size = fft.next_fast_len(2 * length, real=True)
    covariance = fft.irfft(power, size, axis=-1)[:, :length] / length
    within = covariance[:, :1] * length / (length - 1.0)
    total = covariance[:, :1].copy()
    if chains > 1:
        total += x.mean(-1).var(-1, ddof=1)[:, None]
    rho = 1.0 - (within - covariance) / total
    rho[:, 0] = 1.0
    pairs = rho[:, 0 : length - length % 2 : 2] + rho[:, 1::2]
    leading = np.logical_and.accumulate(pairs > 0.0, axis=1)
    last = np.minimum(leading.sum(1), (length - 3) // 2)  # the pair at which the sum ends
    decreasing = np.minimum.accumulate(pairs, axis=1)
    in_sum = np.arange(pairs.shape[1]) < last[:, None]
    rows = np.arange(len(x))
    even = rho[rows, 2 * last]
    even = np.where((even > 0.0) | (pairs[rows, last] >= 0.0), even, 0.0)
    time = -1.0 + 2.0 * np.where(in_sum, decreasing, 0.0).sum(1) + even
    count = chains * length
    sizes = count / np.maximum(time, 1.0 / np.log10(count))
    still = x.max((1, 2)) - x.min((1, 2)) < np.finfo(float).resolution
    found: Array = np.where(still, count, sizes)
    return found
