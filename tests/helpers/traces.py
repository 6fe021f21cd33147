# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Traces of runs by Gibbs that are written by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray

from pyro_aeb.storage.xarray_variables import to_container


def make_trace(
    gamma: Any,
    probability: Any = None,
    weights: Any = None,
    *,
    accepted: float = 50.0,
    group: int = 1,
    coords: Any = None,
    adaptation: str = "Gibbs(every=10, flips=True)",
    steps: int = 10,
    tree: bool = False,
) -> Any:
    """
    Make a trace of one site ``beta``.

    :param gamma: shape (chains, draws, *shape); None for none.
    :param probability: likewise.
    :param accepted: how many of 50 flips were accepted.
    :param coords: labels of the first axis.
    :param tree: whether to make a DataTree, not what ArviZ has.
    """

    def variable(values: Any, kind: str) -> xarray.DataArray:
        values = np.asarray(values)
        axes = [f"beta_dim_{i}" for i in range(values.ndim - 2)]
        labels = {axes[0]: coords} if axes and coords is not None else {}
        return xarray.DataArray(
            values, dims=["chain", "draw", *axes], coords=labels, attrs={"kind": kind}
        )

    summaries = {"beta_gamma": (gamma, "draw"), "beta_rho": (probability, "probability")}
    kept = {name: variable(*own) for name, own in summaries.items() if own[0] is not None}
    shape = next(iter(kept.values())).shape[:2]
    draws = np.zeros(shape) if weights is None else weights
    attributes = {"adaptation": adaptation, "steps_per_draw": str(steps)}
    if group > 1:
        attributes["groups"] = json.dumps({"beta": group})
    name = "other" if weights is None else "beta"
    counts = {"flips_proposed": 50.0, "flips_accepted": accepted}
    stats = {n: (("chain", "draw"), np.full(shape, x)) for n, x in counts.items()}
    groups = {
        "posterior": xarray.Dataset({name: variable(draws, "draw")}, attrs=attributes),
        "adaptation": xarray.Dataset(kept),
        "sample_stats": xarray.Dataset(stats),
    }
    return xarray.DataTree.from_dict(groups) if tree else to_container(groups)
