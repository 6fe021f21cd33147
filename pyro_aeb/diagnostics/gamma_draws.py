# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The gammas that a run has drawn, read from the run or from a saved trace of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from pyro.infer import MCMC

from pyro_aeb.diagnostics.saved_trace import find_posterior, kinds, values, variables
from pyro_aeb.model.structure import gamma_name, rho_name
from pyro_aeb.storage.inference_data import chain_reports
from pyro_aeb.storage.xarray_variables import as_array
from pyro_aeb.testing.linear import Array

DRAWN = ("draw", "probability")
"""Kinds of the variables of the group ``adaptation`` of a run by Gibbs."""

QUADRATIC = 0.999
"""The least share of accepted flips with which a likelihood counts as quadratic."""


@dataclass(frozen=True)
class SiteGammas:
    """
    The gammas of one site. A unit is a weight, or a group of weights with one gamma.

    :param str site: its name.
    :param tuple shape: of its value.
    :param int group: the number of consecutive weights in a unit.
    :param gamma: draws, bool, shape (chains, draws, units); None where they are not kept.
    :param probability: the probabilities that gammas were drawn with, likewise.
    :param labels: for each axis of the value the names of its coordinates.
    :param weights: draws of the weights, shape (chains, draws, weights); None where not kept.
    """

    site: str
    shape: tuple[int, ...]
    group: int
    gamma: Array | None
    probability: Array | None
    labels: tuple[Sequence[Any], ...]
    weights: Array | None = None

    @property
    def units(self) -> int:
        return math.prod(self.shape) // self.group

    def name(self, unit: int) -> str:
        """Return the name of a unit, such as ``beta[3]``; of a group that of its row."""
        axes = len(self.shape)
        while math.prod(self.shape[axes:]) < self.group:
            axes -= 1
        if math.prod(self.shape[axes:]) != self.group:
            return f"{self.site}[group {unit}]"
        return self._name(unit, axes)

    def weight_names(self) -> tuple[str, ...]:
        """Return the names of all weights, flat."""
        axes = len(self.shape)
        return tuple(self._name(weight, axes) for weight in range(math.prod(self.shape)))

    def _name(self, number: int, axes: int) -> str:
        index = np.unravel_index(number, self.shape[:axes]) if axes else ()
        labels = [str(names[int(i)]) for names, i in zip(self.labels, index, strict=False)]
        return f"{self.site}[{', '.join(labels)}]" if labels else self.site

    def spread(self, values: Array) -> Array:
        """Spread one value a unit, shape (..., units), over the weights, (..., *shape)."""
        return values.repeat(self.group, -1).reshape(*values.shape[:-1], *self.shape)


@dataclass(frozen=True)
class GammaDraws:
    """
    The gammas of a run by Gibbs, or of scans of its draws.

    :param sites: those whose gammas or probabilities are kept.
    :param float accepted: the share of proposed flips that were accepted, 1 if there were none.
    :param bool joint: whether gammas and weights of a draw belong together. Without flips they do
        if a draw follows right after a scan, since steps in between sum gamma out.
    :param str source: how they were drawn, in words.
    """

    sites: tuple[SiteGammas, ...]
    accepted: float
    joint: bool
    source: str
    chains: int = field(init=False)
    draws: int = field(init=False)

    def __post_init__(self) -> None:
        first = self.sites[0]
        kept = first.probability if first.gamma is None else first.gamma
        assert kept is not None
        object.__setattr__(self, "chains", kept.shape[0])
        object.__setattr__(self, "draws", kept.shape[1])

    def __str__(self) -> str:
        chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
        return f"{chains} of {self.draws} draws, {self.source}"

    @property
    def names(self) -> list[str]:
        """The names of all units."""
        return [site.name(unit) for site in self.sites for unit in range(site.units)]

    def gamma(self, caller: str) -> Array:
        """
        Return all gammas, bool, shape (chains, draws, units).

        :raises ValueError: if some are not kept.
        """
        missing = [gamma_name(site.site) for site in self.sites if site.gamma is None]
        if missing:
            raise ValueError(
                f"{caller} takes draws of gamma, and the run has kept no {', '.join(missing)}; "
                "name them in save="
            )
        return np.concatenate([site.gamma for site in self.sites if site.gamma is not None], -1)

    def by_site(self, values: Array) -> dict[str, Array]:
        """Split one value a unit, shape (..., units), by site, (..., *shape) each."""
        ends = np.cumsum([site.units for site in self.sites])[:-1]
        parts = zip(self.sites, np.split(values, ends, axis=-1), strict=True)
        return {site.site: site.spread(part) for site, part in parts}


class _Records(NamedTuple):
    """
    The records of a run.

    :param kinds: of the variables of the group ``adaptation``.
    :param labels: for some variables, the names of the coordinates of every axis.
    """

    adaptation: Mapping[str, Array]
    kinds: Mapping[str, str]
    labels: Mapping[str, tuple[Sequence[Any], ...]]
    posterior: Mapping[str, Array]
    stats: Mapping[str, Array]
    settings: Mapping[str, Any]


def read_gammas(run: Any, caller: str) -> GammaDraws:
    """
    Return the gammas of a run of an AEBKernel or of a saved trace.

    :param run: ``MCMC``, ``arviz.InferenceData``, :class:`xarray.DataTree`, or gammas.
    :param str caller: for error messages.
    :raises TypeError: if it is something else.
    :raises ValueError: if it has no gammas.
    """
    if isinstance(run, GammaDraws):
        return run
    records = _read_run(run, caller) if isinstance(run, MCMC) else _read_trace(run, caller)
    if not any(records.kinds.get(name) in DRAWN for name in records.adaptation):
        raise ValueError(_explain_absence(records, caller))
    groups: Mapping[str, int] = json.loads(records.settings.get("groups", "{}"))
    sites = {
        name.removesuffix(end): None
        for name in records.adaptation
        for end in (rho_name(""), gamma_name(""))
        if name.endswith(end)
    }
    accepted, proposed = (_last_count(records, f"flips_{end}") for end in ("accepted", "proposed"))
    return GammaDraws(
        tuple(_site(site, records, int(groups.get(site, 1))) for site in sites),
        accepted / proposed if proposed else 1.0,
        _are_joint(records.settings),
        str(records.settings.get("adaptation", "Gibbs()")),
    )


def _read_run(run: MCMC, caller: str) -> _Records:
    reports = chain_reports(run, caller)
    adaptation, stats = (
        {
            name: np.stack([as_array(report[group][name]) for report in reports])
            for name in reports[0].get(group, {})
        }
        for group in ("adaptation", "sample_stats")
    )
    draws = {n: as_array(x) for n, x in run.get_samples(group_by_chain=True).items()}
    kinds, settings = reports[0].get("summaries", {}), reports[0].get("settings", {})
    return _Records(adaptation, kinds, {}, draws, stats, settings)


def _read_trace(trace: Any, caller: str) -> _Records:
    posterior = find_posterior(trace, caller)
    labels = {
        name: tuple(x[dim].values if dim in x.coords else range(x.sizes[dim]) for dim in x.dims)
        for name, x in variables(trace, "adaptation").items()
    }
    draws, adaptation, stats = (
        values(trace, group) for group in ("posterior", "adaptation", "sample_stats")
    )
    return _Records(adaptation, kinds(trace, "adaptation"), labels, draws, stats, posterior.attrs)


def _last_count(records: _Records, name: str) -> float:
    """Return a count at the last draw, over all chains; NaN where it is not kept."""
    return float(np.sum(records.stats[name][:, -1])) if name in records.stats else math.nan


def _site(site: str, records: _Records, group: int) -> SiteGammas:
    kept = {
        name: records.adaptation[name(site)]
        for name in (gamma_name, rho_name)
        if name(site) in records.adaptation
    }
    one = next(iter(kept))
    shape = kept[one].shape[2:]
    labels = records.labels.get(one(site), ((), (), *(range(n) for n in shape)))[2:]

    def flat(values: Array | None, size: int) -> Array | None:
        if values is None:
            return None
        return values.reshape(*values.shape[:2], -1)[..., ::size]

    gamma = flat(kept.get(gamma_name), group)
    return SiteGammas(
        site,
        shape,
        group,
        None if gamma is None else gamma > 0.5,
        flat(kept.get(rho_name), group),
        labels,
        flat(records.posterior.get(site), 1),
    )


def _are_joint(settings: Mapping[str, Any]) -> bool:
    """
    Return whether draws follow right after scans, or steps in between are given gamma. After a
    warm-up that is tuned, which ends at any step, draws need not follow scans.
    """
    options = str(settings.get("adaptation", ""))
    every = re.search(r"every=(\d+)", options)
    if "flips=False" not in options or every is None:
        return True
    steps = str(settings.get("steps_per_draw", 1))
    return steps.isdecimal() and int(steps) % int(every[1]) == 0


def _explain_absence(records: _Records, caller: str) -> str:
    learned = [n for n, kind in records.kinds.items() if kind == "stochastic approximation"]
    if learned:
        name = learned[0]
        return (
            f"{caller} takes draws of gamma, and this run is by stochastic approximation: {name} "
            "is the running average of (4), at point estimates of sigma and delta. It enters the "
            "penalties of the very weights that it is computed from, so it tends to 0 or 1 "
            "where the posterior is undecided; its spread is no Monte Carlo error. It is no "
            "inclusion probability. Use adaptation=aeb.Gibbs(), which draws gamma; or estimate "
            "the probabilities at the learned sigma and delta, by scans of the draws of this run: "
            "aeb.inclusion(mcmc, scans=1)"
        )
    return (
        f"{caller} takes draws of gamma, and the run has kept none: expected spike-and-slab "
        "priors, adaptation=aeb.Gibbs(), and save=[...] with <site>_gamma, or without save="
    )
