# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A finished ``MCMC`` run as an ArviZ object, read from what the run left behind: the draws, and the
``diagnostics()`` of every chain's kernel. The model is not run again.

The run is checked (:func:`chain_reports`), its tensors are gathered into groups of variables
(:func:`_gather`), every axis gets a name (:class:`AxisNames`), and the groups go into the
container of the installed ArviZ: ``InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
)


def to_arviz(
    mcmc: MCMC,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
) -> Any:
    """
    Converts a finished run of :class:`~pyro_aeb.AEBKernel` for ArviZ, without running the model
    again. The groups are:

    - ``posterior``: all that ``mcmc.get_samples()`` holds;
    - ``sample_stats``: one number a draw: ``diverging`` (always False: a run that blows up stops),
      ``potential`` (-Q by the last step's batch, at the weights before that step, without terms
      that the weights do not enter), ``step_size``, ``inverse_temperature``, ``sa_weight``,
      ``sparsity``: with pruning the share of all weights that are zero, without it the share of
      sparse weights that rather belong to the narrower component; ``kinetic_temperature``, and
      whatever else the transition says of its last step; ``sa_residual_rho`` and, where they are
      learned, ``sa_residual_sigma`` and ``sa_residual_delta``, how far these were from closing
      their equations (a Euclidean norm; NaN where omega is 0); and with pruning
      ``pruning_flips``, how many weights have become zero or have ceased to be since the draw
      before;
    - ``adaptation``: what the stochastic approximation kept for every weight, such as ``beta_rho``,
      the inclusion probabilities of the site ``beta``;
    - ``moments``: of sites and inclusion probabilities that are not kept draw by draw, the mean and
      standard deviation over the draws, ``<name>_mean`` and ``<name>_sd``, without the dimension
      ``draw``; their Euclidean norms, one a draw, are ``<site>_norm`` in ``sample_stats``;
    - ``observed_data``: the data, where the kernel hands them over.

    All but moments and data have the leading dimensions ``(chain, draw)``. The other dimensions are
    named after the model's plates, or ``beta_dim_0`` and so on where there is none. An axis under a
    plate of which another variable has a different length, as in a subsample, gets such a name as
    well.

    The attribute ``kind`` of every variable tells draws (``"draw"``) from paths of point estimates
    (``"stochastic approximation"``); attributes of the group ``posterior`` list both. Draws keep
    their dtype.

    Example::

        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=200)
        mcmc.run(X, y, batch_size=50)
        idata = to_arviz(mcmc, coords={"features": column_names})
        az.summary(idata, var_names=["beta"])
        idata.to_netcdf("trace.nc")

    :param mcmc: A :class:`pyro.infer.MCMC` object after its ``run()``, with any number of chains.
    :param coords: Labels for the dimensions named in it; the others are numbered from 0.
    :param dims: Dimension names for the sites named in it, one for every axis right of ``(chain,
        draw)``, in place of those of the plates; None leaves an axis its name.
    :return: ``arviz.InferenceData`` with ArviZ 0.x, :class:`xarray.DataTree` with ArviZ 1.x.
    :raises TypeError: If ``mcmc`` keeps no draws, or its kernel is not an ``AEBKernel``.
    :raises RuntimeError: If ``mcmc`` has not been run.
    :raises ValueError: If ``coords`` or ``dims`` do not fit the draws.
    """
    # Imported on use: together they take as long as Pyro, and spawned chains need neither.
    import arviz
    import xarray

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
    datasets = {group: data.assign_coords(axes.labels(data)) for group, data in datasets.items()}

    # ArviZ 1.x answers arviz.InferenceData too, with a warning and another class.
    inference_data: Any = vars(arviz).get("InferenceData")
    return inference_data(**datasets) if inference_data else xarray.DataTree.from_dict(datasets)


def chain_reports(mcmc: object, reader: str) -> list[dict[str, Any]]:
    """
    What the kernel of every chain reported at its end.

    :param mcmc: A finished run.
    :param str reader: Who asks, for the errors.
    :raises TypeError: If it keeps no draws, or its kernel is not an ``AEBKernel``.
    :raises RuntimeError: If it has not been run.
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
    """All that the run left behind, by group and variable name; no group but the first is empty."""
    first = chains[0]

    def stack(key: str, name: str) -> np.ndarray:
        return np.stack([as_array(chain[key][name]) for chain in chains])

    draws, roles = mcmc.get_samples(group_by_chain=True), first["roles"]
    stats, adaptation = first["sample_stats"], first.get("adaptation", {})
    observed = first.get("observed_data", {})
    moments = [
        Variable(
            f"{name}_{moment}",
            np.stack([as_array(chain["moments"][moment][name]) for chain in chains]),
            None,
            ("chain",),
        )
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
