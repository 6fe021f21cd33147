# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Conversion of a finished run to ArviZ, from its draws and the ``diagnostics()`` of every chain's
kernel, which do not run the model again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
from pyro.infer import MCMC
from pyro.infer.mcmc.api import StreamingMCMC

from pyro_aeb.storage.xarray_variables import (
    AxisNames,
    Groups,
    Variable,
    as_array,
    attributes_of_groups,
    by_name,
    to_container,
)


def to_arviz(
    mcmc: MCMC,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    more: Mapping[str, Sequence[Variable]] | None = None,
) -> Any:
    """
    Convert a finished run of :class:`~pyro_aeb.AEBKernel` for ArviZ; see
    :func:`pyro_aeb.to_arviz`.

    :param more: further variables by group, which go before the run's own of the same names.
    """
    import xarray  # on use: it takes as long as Pyro, and spawned chains do not need it

    chains = chain_reports(mcmc, "to_arviz()")
    groups = _gather(mcmc, chains, more or {})
    sites = [*chains[0]["roles"], *(v.source for group in (more or {}).values() for v in group)]
    axes = AxisNames(groups, sites, chains[0]["dims"], coords or {}, dims or {})
    attributes = attributes_of_groups(groups["posterior"], _settings(mcmc, chains[0]))
    names = {
        group: {name: axes.names(variable) for name, variable in variables.items()}
        for group, variables in groups.items()
    }
    axes.check_coords()
    datasets = {
        group: xarray.Dataset(  # with its coordinates: assigned later, each is compared with all
            {name: (names[group][name], v.values, v.attributes) for name, v in variables.items()},
            axes.labels(names[group].values()),
            attributes[group],
        )
        for group, variables in groups.items()
    }
    return to_container(datasets)


def steps_of_run(mcmc: MCMC, report: Mapping[str, Any]) -> tuple[int, int]:
    """
    Return the steps of warm-up, and those from one kept draw to the next. Of a run that was tuned,
    they are those of its first chain.

    :param report: of the first chain.
    """
    given: Any = mcmc.kernel.steps_per_draw
    spacing = int(report["steps_per_draw"] if isinstance(given, str) else given)
    warmup = int(report.get("warmup_steps", spacing * mcmc.warmup_steps))
    return warmup, spacing * getattr(mcmc, "thinning", 1)


def _settings(mcmc: MCMC, report: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a run, with those that were chosen in warm-up."""
    settings: Mapping[str, str] = report.get("settings", {})
    if "steps_per_draw" not in settings:
        return dict(settings)
    warmup, steps = steps_of_run(mcmc, report)
    tuning = {"tuning": json.dumps(report["tuning"])} if "tuning" in report else {}
    steps_of = {"warmup_steps": str(warmup), "steps_between_draws": str(steps)}
    return {**settings, **steps_of, **tuning}


def chain_reports(mcmc: object, reader: str) -> list[dict[str, Any]]:
    """
    Return the diagnostics that the kernel of every chain returned at its end.

    :param mcmc: a finished run.
    :param str reader: name of the caller, for the errors.
    :raises TypeError: if it keeps no draws, or its kernel is not an ``AEBKernel``.
    :raises RuntimeError: if it has not been run.
    """
    if isinstance(mcmc, StreamingMCMC):
        raise TypeError(
            f"{reader} needs draws, but StreamingMCMC keeps none, only their statistics: use "
            "pyro.infer.MCMC, or read mcmc.get_statistics()."
        )
    if not isinstance(mcmc, MCMC):
        raise TypeError(f"{reader} takes a pyro.infer.MCMC object after its run(), found {mcmc!r}.")
    if mcmc._samples is None:
        raise RuntimeError(
            "This MCMC object holds no draws: call its run() first. (Those of an AEBKernel's run "
            "that was cut short are in mcmc.kernel.recover().)"
        )
    chains: Any = mcmc._diagnostics
    if not {"sample_stats", "dims", "roles"} <= chains[0].keys():
        raise TypeError(
            f"{reader} reads runs of pyro_aeb.AEBKernel, found one of "
            f"{type(mcmc.kernel).__name__}: use arviz.from_pyro(mcmc) of ArviZ 0.x, or "
            'arviz.from_dict({"posterior": mcmc.get_samples(group_by_chain=True)}) of ArviZ 1.x.'
        )
    return chains


def _path_of_warmup(chains: list[dict[str, Any]]) -> list[Variable]:
    """Return the figures of every window of a tuned warm-up; NaN after a chain's last window."""
    paths = [chain.get("tuning_path", {}) for chain in chains]
    length = max((len(values) for path in paths for values in path.values()), default=0)
    variables = []
    for name in paths[0]:
        table = np.full((len(chains), length), np.nan)
        for row, path in zip(table, paths, strict=True):
            row[: len(path[name])] = as_array(path[name])
        variables.append(Variable(name, table, None, ("chain", "tuning_window")))
    return variables


def _gather(
    mcmc: MCMC, chains: list[dict[str, Any]], more: Mapping[str, Sequence[Variable]]
) -> Groups:
    """Return all variables by group and name; no group but the first is empty."""
    first = chains[0]

    def stack(*keys: str) -> np.ndarray:
        values: list[Any] = [reduce(getitem, keys, chain) for chain in chains]
        return np.stack([as_array(value) for value in values])

    draws, roles = mcmc.get_samples(group_by_chain=True), first["roles"]
    stats, adaptation = first["sample_stats"], first.get("adaptation", {})
    observed, kinds = first.get("observed_data", {}), first.get("summaries", {})
    moments = [
        Variable(f"{name}_{moment}", stack("moments", moment, name), None, ("chain",))
        for moment, values in first.get("moments", {}).items()
        for name in values
    ]
    groups = {
        "posterior": [Variable(k, as_array(v), roles.get(k, "draw")) for k, v in draws.items()],
        "sample_stats": [Variable(k, stack("sample_stats", k), None) for k in stats],
        "adaptation": [
            Variable(k, stack("adaptation", k), kinds.get(k, "stochastic approximation"))
            for k in adaptation
        ],
        "moments": moments,
        "tuning": _path_of_warmup(chains),
        "observed_data": [Variable(k, as_array(v), "observed", ()) for k, v in observed.items()],
    }
    for group, variables in more.items():
        names = {variable.source for variable in variables}
        kept = [v for v in groups.get(group, []) if v.source not in names]
        groups[group] = [*kept, *variables]
    return {
        group: by_name(variables)
        for group, variables in groups.items()
        if variables or group == "posterior"
    }
