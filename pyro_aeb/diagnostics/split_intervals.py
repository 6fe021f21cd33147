# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Intervals of weights, split into the probability of being in and the interval given that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_aeb.diagnostics.gamma_draws import SiteGammas
from pyro_aeb.diagnostics.inclusion_probabilities import ROWS, Inclusion, inclusion
from pyro_aeb.nn.layers import table
from pyro_aeb.testing.linear import Array
from pyro_aeb.validation import number

LEAST_DRAWS = 20
"""The least number of draws that an interval is computed from."""

UNDECIDED = 0.05
"""The least probability of either mode of a weight with two."""


@dataclass(frozen=True)
class SiteIntervals:
    """
    The intervals of one site's weights; arrays are of the shape of its value.

    :param probability: P(in).
    :param mean: of the weight, given that it is in; NaN with fewer than 20 such draws.
    :param lower: lower end of the equal-tailed interval given in, likewise.
    :param upper: upper end.
    :param draws_in: the number of draws in which the weight is in.
    :param two_modes: whether the weight has two modes: it is in, and not in, with a probability
        of 0.05 or more, and the intervals given either do not overlap.
    """

    probability: Array
    mean: Array
    lower: Array
    upper: Array
    draws_in: Array
    two_modes: Array


@dataclass(frozen=True, repr=False)
class Intervals(Mapping[str, SiteIntervals]):
    """
    The intervals of a run, printed as a table in the order of P(in); ``intervals["beta"]`` are the
    :class:`SiteIntervals` of a site.

    :param sites: by name.
    :param float level: probability of the interval given in.
    :param names: of the weights of each site, flat.
    """

    sites: Mapping[str, SiteIntervals]
    level: float
    names: Mapping[str, tuple[str, ...]]

    def __getitem__(self, site: str) -> SiteIntervals:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        rows, places = [], []
        for name, site in self.sites.items():
            parts = (site.probability, site.mean, site.lower, site.upper)
            numbers = np.stack([part.ravel() for part in parts], -1)
            modes = site.two_modes.ravel()
            for label, (p, *given), two in zip(self.names[name], numbers, modes, strict=True):
                ends = ["-" if np.isnan(x) else f"{x:.3g}" for x in given]
                rows.append((label, f"{p:.3f}", *ends, "two modes" if two else ""))
                places.append(p)
        order = np.argsort(-np.array(places), kind="stable")[:ROWS]
        percent = f"{100 * self.level:g} %"
        text = table(
            ("", "P(in)", "mean if in", f"{percent} from", "to", ""), [rows[i] for i in order]
        )
        more = f"\n{len(rows) - ROWS} more" if len(rows) > ROWS else ""
        return f"weights, given that they are in\n{text}{more}"


def intervals(run: Any, level: float = 0.9) -> Intervals:
    """
    Return P(in) of every weight with a spike-and-slab prior and, given that it is in, its mean and
    its equal-tailed interval.

    The posterior of an undecided weight is a spike at zero and a slab elsewhere. One interval of
    all draws spans what is between them, where no draw is, or leaves one of them out; so such a
    weight is marked as one with two modes, and its mean over all draws is no value that it takes.

    :param run: as of :func:`~pyro_aeb.diagnostics.inclusion`, or what that returned.
    :param float level: probability of the interval, in (0, 1).
    :returns: the intervals.
    :raises TypeError: if ``run`` is no run of an AEBKernel or trace of one.
    :raises ValueError: if draws of gamma or of the weights are not kept, or if gammas do not belong
        to the weights of their draws.
    """
    level = number("level", level, "(0, 1)")
    found = inclusion(run)
    draws = found.draws
    draws.gamma("intervals()")
    if not draws.joint:
        raise ValueError(
            f"intervals() takes draws of gamma and of the weights that belong together, and with "
            f"{draws.source} a draw comes some steps after the last scan, when the weights have "
            "moved with gamma summed out; use steps_per_draw=every, or a multiple of it, or flips"
        )
    if missing := [site.site for site in draws.sites if site.weights is None]:
        raise ValueError(
            f"intervals() takes draws of the weights, and the run has kept none of "
            f"{', '.join(missing)}; name them in save="
        )
    sites = {site.site: _of_site(site, found, level) for site in draws.sites}
    return Intervals(sites, level, {site.site: site.weight_names() for site in draws.sites})


def _of_site(site: SiteGammas, found: Inclusion, level: float) -> SiteIntervals:
    assert site.weights is not None and site.gamma is not None
    size = site.weights.shape[-1]
    weights = site.weights.reshape(-1, size)
    gamma = site.gamma.repeat(site.group, -1).reshape(-1, size)
    both = [_quantiles(weights, own, level) for own in (gamma, ~gamma)]
    (mean, lower, upper), (_, lower_out, upper_out) = both
    p = found[site.site].probability.ravel()
    # Comparisons with NaN are False.
    apart = (lower > upper_out) | (upper < lower_out)
    two_modes = apart & (np.minimum(p, 1.0 - p) >= UNDECIDED)
    parts = (p, mean, lower, upper, gamma.sum(0), two_modes)
    return SiteIntervals(*(part.reshape(site.shape) for part in parts))


def _quantiles(weights: Array, own: Array, level: float) -> Array:
    """Return mean, lower and upper end of every weight over some of its draws, shape (3, n)."""
    found = np.full((3, weights.shape[-1]), np.nan)
    for j in np.flatnonzero(own.sum(0) >= LEAST_DRAWS):
        values = weights[own[:, j], j].astype(np.float64)
        found[0, j] = values.mean()
        found[1:, j] = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return found
