# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Variables of a trace as xarray and ArviZ hold them: arrays with named axes, in groups, with
attributes.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_aeb._version import __version__

SAMPLE_DIMS = ("chain", "draw")

_COMMENTS = {
    "draw": "draws of the sampler",
    "stochastic approximation": (
        "the path of a point estimate, not draws from a posterior: its spread is no posterior "
        "uncertainty, and its R-hat or effective sample size is no posterior diagnostic"
    ),
    "observed": "data",
}


class Variable(NamedTuple):
    """
    One variable of a group.

    :ivar source: The site or statistic that it holds.
    :ivar values: Array of shape ``(chain, draw) + shape``; ``shape`` alone for data.
    :ivar kind: What the values are; None where there is nothing to tell apart.
    :ivar sample_dims: ``("chain", "draw")``; ``("chain",)`` for moments, none for data.
    """

    source: str
    values: np.ndarray
    kind: str | None
    sample_dims: tuple[str, ...] = SAMPLE_DIMS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[len(self.sample_dims) :]

    @property
    def attributes(self) -> dict[str, str]:
        return {} if self.kind is None else {"kind": self.kind, "comment": _COMMENTS[self.kind]}


Groups = dict[str, dict[str, Variable]]


def by_name(variables: Iterable[Variable]) -> dict[str, Variable]:
    """The variables under names that netCDF and xarray can hold: no slash, no sample dimension."""
    named: dict[str, Variable] = {}
    for variable in variables:
        name = variable.source.replace("/", ".")
        while name in named or name in SAMPLE_DIMS:
            name += "_"
        named[name] = variable
    return named


def as_array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:  # which numpy lacks
        value = value.float()
    return value.numpy()


class AxisNames:
    """
    Names for the axes of all variables; one name has one length throughout.

    :param groups: The variables, in the order in which they lay claim to the names of plates.
    :param sites: Names of the model's sites.
    :param plates: For each site the plate of every axis of its value, None where there is none;
        also for those statistics whose axes are not the same as their site's.
    :param coords: The user's labels of dimensions.
    :param dims: The user's names of dimensions, for some sites.
    """

    def __init__(
        self,
        groups: Groups,
        sites: Iterable[str],
        plates: Mapping[str, Sequence[str | None]],
        coords: Mapping[str, Sequence[Any]],
        dims: Mapping[str, Sequence[str | None]],
    ) -> None:
        self._sites = frozenset(sites)
        self._plates = plates
        self._coords = coords
        self._dims = dims
        self._shapes = {v.source: v.shape for v in groups["posterior"].values()}
        self._reserved = {name for variables in groups.values() for name in variables}
        self._reserved.update(SAMPLE_DIMS)
        self._lengths = {name: len(labels) for name, labels in coords.items()}
        self._used: set[str] = set()
        self._misfits: dict[str, int] = {}

        known = {v.source for variables in groups.values() for v in variables.values()}
        if unknown := dims.keys() - known - plates.keys():
            raise ValueError(f"dims names {sorted(unknown)}, but the run has only {sorted(known)}.")

    def names(self, variable: Variable) -> tuple[str, ...]:
        """The names of all axes of a variable, ``chain`` and ``draw`` included."""
        site = self._site(variable)
        plates = self._plates.get(site, ())
        if len(plates) != len(variable.shape):
            plates = [None] * len(variable.shape)
        chosen = self._chosen(variable, site)
        names = list(variable.sample_dims)
        for axis, size in enumerate(variable.shape):
            name, plate = chosen[axis], plates[axis]
            if name is None and plate is not None:
                plate = plate.replace("/", ".")
                if plate not in self._reserved and plate not in names:
                    if self._lengths.setdefault(plate, size) == size:
                        name = plate
                    else:
                        self._misfits[plate] = size
            names.append(name or f"{site}_dim_{axis}".replace("/", "."))
        for name, size in zip(names, variable.values.shape, strict=True):
            if self._lengths.setdefault(name, size) != size:
                raise ValueError(
                    f"The dimension {name!r} of {variable.source!r} has length {size}, but "
                    f"{'coords' if name in self._coords else 'another variable'} gives it length "
                    f"{self._lengths[name]}."
                )
        self._used.update(names)
        return tuple(names)

    def check_coords(self) -> None:
        """Raises an error if ``coords`` labels what no variable has; call it after all names."""
        plates = {plate for site in self._plates.values() for plate in site}
        for name in self._coords.keys() - self._used:
            if name in self._misfits:
                raise ValueError(
                    f"coords gives {self._lengths[name]} labels for {name!r}, whose length is "
                    f"{self._misfits[name]}."
                )
            if name not in plates:
                raise ValueError(
                    f"coords labels {name!r}, but the dimensions are {sorted(self._used)}."
                )

    def labels(self, data: Any) -> dict[str, Any]:
        """The coordinates of a dataset whose axes were named here."""
        return {
            name: np.asarray(self._coords[name]) if name in self._coords else np.arange(size)
            for name, size in data.sizes.items()
        }

    def _site(self, variable: Variable) -> str:
        """The site whose dimensions a variable has: ``beta`` for ``beta`` and ``beta_rho``."""
        name = variable.source
        owners = [
            site
            for site, plates in self._plates.items()
            if site in self._sites
            and name.startswith(f"{site}_")
            and self._shapes.get(site, variable.shape) == variable.shape
            and list(self._plates.get(name, plates)) == list(plates)
            and len(plates) == len(variable.shape)
        ]
        return name if name in self._sites else max(owners, key=len, default=name)

    def _chosen(self, variable: Variable, site: str) -> Sequence[str | None]:
        """The user's names for the axes of a variable, None where there is none."""
        rank = len(variable.shape)
        chosen = list(self._dims.get(variable.source, self._dims.get(site, [None] * rank)))
        if len(chosen) != rank:
            raise ValueError(
                f"dims gives {len(chosen)} names {chosen} for {variable.source!r}, of shape "
                f"{variable.shape}: give {rank}, None for an axis that keeps its name."
            )
        given = [name for name in chosen if name is not None]
        if clash := [name for name in given if name in self._reserved or given.count(name) > 1]:
            raise ValueError(
                f"dims names an axis of {variable.source!r} {clash[0]!r}, which is taken: a "
                "dimension needs a name that no variable and no other axis has."
            )
        return chosen


def attributes_of_groups(
    posterior: Mapping[str, Variable], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Attributes of every group, all of types that netCDF can hold."""
    common = {
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "creation_library": "pyro_aeb",
        "creation_library_version": __version__,
        "creation_library_language": "Python",
        "inference_library": "pyro_aeb",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
    }
    sampled = {**common, "sample_dims": list(SAMPLE_DIMS)}
    names = {
        "draws": [name for name, v in posterior.items() if v.kind == "draw"],
        "stochastic_approximation": [name for name, v in posterior.items() if v.kind != "draw"],
    }
    return {
        "posterior": {
            **{key: str(value) for key, value in settings.items()},
            **{key: ", ".join(value) for key, value in names.items() if value},
            **sampled,
        },
        "sample_stats": sampled,
        "adaptation": sampled,
        "moments": common,
        "observed_data": common,
    }
