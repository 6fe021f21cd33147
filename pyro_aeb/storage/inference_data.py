# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Conversion of a finished run to ArviZ, from its draws and the ``diagnostics()`` of every chain's
kernel. The model is not run again.
"""

from __future__ import annotations

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
) -> Any:
    """
    Convert a finished run of :class:`~pyro_aeb.AEBKernel` for ArviZ. The groups are:

    - ``posterior``: all that ``mcmc.get_samples()`` holds;
    - ``sample_stats``, one number a draw: ``diverging`` (always False: a run that diverges stops),
      ``potential`` (-Q by the minibatch of the last step, at the weights before that step, up to
      terms that do not depend on the weights), ``step_size``, ``inverse_temperature``,
      ``sa_weight``, ``sparsity`` (with pruning the share of all weights that are zero, without it
      the share of sparse weights that rather belong to the narrower component),
      ``kinetic_temperature`` and other statistics of the transition; ``sa_residual_rho`` and, where
      they are learned, ``sa_residual_sigma`` and ``sa_residual_delta``, the residuals of their
      equations (a Euclidean norm; NaN where omega is 0); with pruning ``pruning_flips``, the number
      of weights that have become zero or nonzero since the draw before;
    - ``adaptation``: inclusion probabilities, such as ``beta_rho`` of the site ``beta``;
    - ``moments``: of sites and inclusion probabilities that draws do not hold, the mean and
      standard deviation over the draws, ``<name>_mean`` and ``<name>_sd``, without the dimension
      ``draw``; ``<site>_norm`` in ``sample_stats`` is their Euclidean norm in every draw;
    - ``observed_data``: the data, if the kernel returns them.

    All but moments and data have the leading dimensions ``(chain, draw)``. The other dimensions are
    named after the model's plates, or ``beta_dim_0`` and so on where there is none, or where
    another variable has another length under the same plate, as in a subsample.

    The attribute ``kind`` of a variable is ``"draw"``, or ``"stochastic approximation"`` for the
    path of a point estimate; attributes of the group ``posterior`` list both. Draws keep their
    dtype.

    Example::

        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200)
        mcmc.run(X, y, batch_size=50)
        idata = to_arviz(mcmc, coords={"features": column_names})
        az.summary(idata, var_names=["beta"])
        idata.to_netcdf("trace.nc")

    :param mcmc: a :class:`pyro.infer.MCMC` object after its ``run()``, with any number of chains.
    :param coords: labels for some dimensions; the others are numbered from 0.
    :param dims: dimension names for some sites, one for every axis after ``(chain, draw)``, in
        place of those of the plates; None leaves an axis its name.
    :return: ``arviz.InferenceData`` with ArviZ 0.x, :class:`xarray.DataTree` with ArviZ 1.x.
    :raises TypeError: if ``mcmc`` keeps no draws, or its kernel is not an ``AEBKernel``.
    :raises RuntimeError: if ``mcmc`` has not been run.
    :raises ValueError: if ``coords`` or ``dims`` do not fit the draws.
    """
    import xarray  # on use: it takes as long as Pyro, and spawned chains do not need it

    chains = chain_reports(mcmc, "to_arviz()")
    groups = _gather(mcmc, chains)
    axes = AxisNames(groups, chains[0]["roles"], chains[0]["dims"], coords or {}, dims or {})
    attributes = attributes_of_groups(groups["posterior"], chains[0].get("settings", {}))
    datasets = {
        group: xarray.Dataset(
            {name: (axes.names(v), v.values, v.attributes) for name, v in variables.items()},
            attrs=attributes[group],
        )
        for group, variables in groups.items()
    }
    axes.check_coords()
    return to_container({g: data.assign_coords(axes.labels(data)) for g, data in datasets.items()})


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


def _gather(mcmc: MCMC, chains: list[dict[str, Any]]) -> Groups:
    """Return all variables by group and name; no group but the first is empty."""
    first = chains[0]

    def stack(*keys: str) -> np.ndarray:
        values: list[Any] = [reduce(getitem, keys, chain) for chain in chains]
        return np.stack([as_array(value) for value in values])

    draws, roles = mcmc.get_samples(group_by_chain=True), first["roles"]
    stats, adaptation = first["sample_stats"], first.get("adaptation", {})
    observed = first.get("observed_data", {})
    moments = [
        Variable(f"{name}_{moment}", stack("moments", moment, name), None, ("chain",))
        for moment, values in first.get("moments", {}).items()
        for name in values
    ]
    groups = {
        "posterior": [Variable(k, as_array(v), roles.get(k, "draw")) for k, v in draws.items()],
        "sample_stats": [Variable(k, stack("sample_stats", k), None) for k in stats],
        "adaptation": [
            Variable(k, stack("adaptation", k), "stochastic approximation") for k in adaptation
        ],
        "moments": moments,
        "observed_data": [Variable(k, as_array(v), "observed", ()) for k, v in observed.items()],
    }
    return {
        group: by_name(variables)
        for group, variables in groups.items()
        if variables or group == "posterior"
    }
