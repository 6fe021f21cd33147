# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Inclusion probabilities, from draws of gamma."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_aeb.diagnostics.batch_means import error_of_mean
from pyro_aeb.diagnostics.end_scans import scan_draws
from pyro_aeb.diagnostics.gamma_draws import QUADRATIC, GammaDraws, read_gammas
from pyro_aeb.nn.layers import table
from pyro_aeb.testing.linear import Array

ROWS = 20
"""The most rows of a printed table."""


@dataclass(frozen=True)
class SiteInclusion:
    """
    The inclusion probabilities of one site's weights; arrays are of the shape of its value.

    :param probability: P(gamma = 1).
    :param error: its Monte Carlo standard error; NaN if it cannot be told.
    :param flips: how often gamma changed from one draw to the next, in all chains; None where
        gammas are not kept.
    :param by_chain: the estimate of every chain, shape (chains, ...).
    """

    probability: Array
    error: Array
    flips: Array | None
    by_chain: Array

    @property
    def lowest(self) -> Array:
        """The least of the chains' estimates."""
        return self.by_chain.min(0)

    @property
    def highest(self) -> Array:
        """The largest of the chains' estimates."""
        return self.by_chain.max(0)


@dataclass(frozen=True, repr=False)
class Inclusion(Mapping[str, SiteInclusion]):
    """
    The inclusion probabilities of a run. Printed, it is a table of the units, which are weights or
    groups of weights with one gamma, in the order of their probabilities; ``inclusion["beta"]`` is
    the :class:`SiteInclusion` of a site.

    :param sites: by name.
    :param str estimate: ``"probabilities"`` for the mean of the probabilities that gammas were
        drawn with (Rao-Blackwell), ``"draws"`` for the mean of the gammas.
    :param GammaDraws draws: what they were computed from; other functions take it from here.
    """

    sites: Mapping[str, SiteInclusion]
    estimate: str
    draws: GammaDraws

    def __getitem__(self, site: str) -> SiteInclusion:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        names = self.draws.names
        p, error, lowest, highest = (
            self.by_unit(part) for part in ("probability", "error", "lowest", "highest")
        )
        has_flips = all(site.flips is not None for site in self.sites.values())
        flips = self.by_unit("flips").astype(int).astype(str) if has_flips else ["-"] * len(names)
        order = np.argsort(-p, kind="stable")
        rows = [
            (names[i], f"{p[i]:.3f}", _text(error[i]), flips[i], _span(lowest[i], highest[i]))
            for i in order[:ROWS]
        ]
        head = f"inclusion probabilities, {self.draws}"
        text = table(("", "P(in)", "error", "flips", "chains"), rows)
        if len(names) > ROWS:
            text += f"\n{len(names) - ROWS} more, of P(in) at most {p[order[ROWS]]:.3f}"
        apart = int(np.argmax(highest - lowest))
        if self.draws.chains > 1 and highest[apart] > lowest[apart]:
            text += (
                f"\nchains differ most in {names[apart]}: {_span(lowest[apart], highest[apart])}"
            )
        return f"{head}\n{text}"

    def by_unit(self, part: str) -> Array:
        """Return one value of every unit, of a field of :class:`SiteInclusion`."""
        parts = []
        for site in self.draws.sites:
            values = np.asarray(getattr(self.sites[site.site], part))
            parts.append(values.reshape(-1)[:: site.group])
        return np.concatenate(parts)


def inclusion(run: Any, scans: int = 0, draws: int = 100) -> Inclusion:
    r"""
    Return the inclusion probability P(gamma = 1) of every weight with a spike-and-slab prior, with
    its Monte Carlo error. Printed, they are a table::

        print(aeb.inclusion(mcmc))
        aeb.inclusion(aeb.open_trace("run.zarr"))["beta"].probability

    Of a run by :class:`~pyro_aeb.Gibbs` it is the mean over chains and draws of the probability
    that gamma was drawn with in the last scan, which is closer than that of gamma itself (Rao and
    Blackwell). Where flips were rejected, 1 of 1000 or more, as for a likelihood that is not
    quadratic in the weights, that is not the probability that gamma moves by, and the mean of gamma
    is taken. Errors are those of batch means, or of the chains' means where these differ by more:
    :math:`\sqrt{\max(b / 10, c) / C}` for C chains, with b the variance of ten batch means within a
    chain and c the variance of the chains' means. An error presumes that gamma moves, so look at
    its flips and at the range over chains, too. It is NaN for chains of fewer than 20 draws, and
    for a mean of gammas that are all the same.

    A run by :class:`~pyro_aeb.StochasticApproximation` has no inclusion probabilities: its rho is
    the running average of (4) at point estimates, and it enters the penalties of the weights that
    it is computed from. Of such a run, whose data are in this process, ``scans`` estimates them at
    the learned sigma and delta of a draw: from every draw, that many scans over all gammas, each
    drawn with its weights summed out, as by :class:`~pyro_aeb.Gibbs` with flips. The draws stay
    those of the run and the scans are few, so it is an estimate; a run by Gibbs is exact.

    :param run: a run of an AEBKernel by :class:`pyro.infer.MCMC` or :class:`pyro_aeb.MCMC`; or its
        trace, from :func:`~pyro_aeb.to_arviz`, :func:`~pyro_aeb.open_trace` or a file of it
        (``arviz.InferenceData``, :class:`xarray.DataTree`), whose coordinates then name the rows.
    :param int scans: from every draw of a run by stochastic approximation, at the cost of one
        gradient of all data each, and one more for every gamma that is to change; 0 for none.
    :param int draws: the most draws of a chain that scans begin from, evenly spaced.
    :returns: the probabilities.
    :raises TypeError: if ``run`` is no run of an AEBKernel, or a trace of which scans are wanted.
    :raises ValueError: if it has no draws of gamma, or scans of it are not possible.
    """
    if isinstance(run, Inclusion) and not scans:
        return run
    found = read_gammas(run, "inclusion()") if not scans else scan_draws(run, scans, draws)
    takes_gamma = not found.accepted >= QUADRATIC or any(s.probability is None for s in found.sites)
    if takes_gamma:
        found.gamma("inclusion()")
    sites = {}
    for site in found.sites:
        series = site.gamma if takes_gamma else site.probability
        assert series is not None
        by_chain = series.mean(1, dtype=np.float64)
        error = error_of_mean(series)
        if takes_gamma:
            error = np.where(error > 0.0, error, np.nan)
        flips = None if site.gamma is None else np.diff(site.gamma, axis=1).sum((0, 1))
        sites[site.site] = SiteInclusion(
            site.spread(by_chain.mean(0)),
            site.spread(error),
            None if flips is None else site.spread(flips),
            site.spread(by_chain),
        )
    return Inclusion(sites, "draws" if takes_gamma else "probabilities", found)


def _text(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _span(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"
