# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Variables of a run for xarray and ArviZ: arrays with named axes, in groups, with attributes."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_aeb.storage.version import __version__

SAMPLE_DIMS = ("chain", "draw")
"""Leading dimensions of variables."""

_COMMENTS = {
    "draw": "draws of the sampler",
    "stochastic approximation": (
        "the path of a point estimate, not draws from a posterior: its spread is no posterior "
        "uncertainty, and its R-hat or effective sample size is no posterior diagnostic"
    ),
    "probability": (
        "the probability that gamma was drawn with in the last scan; where flips are accepted, its "
        "mean over the draws estimates the inclusion probability"
    ),
    "deterministic": "computed from the draws of other sites",
    "observed": "data",
}


class Variable(NamedTuple):
    """
    A variable of a group.

    :ivar source: its site or statistic.
    :ivar values: array of shape ``(chain, draw) + shape``; ``shape`` alone for data.
    :ivar kind: of the values; None where they are all of one kind.
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
"""Group to name to variable."""


def by_name(variables: Iterable[Variable]) -> dict[str, Variable]:
    """Name variables as netCDF and xarray allow: no slash, no sample dimension."""
    named: dict[str, Variable] = {}
    for variable in variables:
        name = variable.source.replace("/", ".")
        while name in named or name in SAMPLE_DIMS:
            name += "_"
        named[name] = variable
    return named


def as_array(value: Tensor) -> np.ndarray:
    """Convert a tensor to an array; ``bfloat16`` becomes ``float32``."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def to_container(datasets: Mapping[str, Any]) -> Any:
    """Return datasets by group as ``arviz.InferenceData`` (0.x) or ``xarray.DataTree`` (1.x)."""
    import arviz  # on use: with xarray it takes as long as Pyro
    import xarray

    # ArviZ 1.x answers arviz.InferenceData too, with a warning and another class.
    inference_data: Any = vars(arviz).get("InferenceData")
    return inference_data(**datasets) if inference_data else xarray.DataTree.from_dict(datasets)


class AxisNames:
    """
    Names the axes of all variables, so that a name has one length.

    :param groups: the variables; the first that has a plate gives its name a length.
    :param plates: for each site the plate of every axis of its value, None where there is none;
        also for statistics whose axes are not those of their site.
    :param dims: the user's names of dimensions, for some sites.
    :raises ValueError: if ``dims`` names a site that there is not.
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
        """Return the names of all axes of a variable, ``chain`` and ``draw`` included."""
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
        """Check that variables have all dimensions of ``coords``; call it after all names."""
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

    def labels(self, names: Iterable[tuple[str, ...]]) -> dict[str, np.ndarray]:
        """Return the coordinates of a dataset, by the names of its variables' axes."""
        labels = self._coords
        return {
            name: np.asarray(labels[name]) if name in labels else np.arange(self._lengths[name])
            for name in dict.fromkeys(chain.from_iterable(names))
        }

    def _site(self, variable: Variable) -> str:
        """Return the site whose dimensions a variable has, ``beta`` for ``beta_rho`` too."""
        name = variable.source
        owners = [
            site
            for site in (name[:end] for end, letter in enumerate(name) if letter == "_")
            if site in self._sites
            and site in self._plates
            and self._shapes.get(site, variable.shape) == variable.shape
            and list(self._plates.get(name, self._plates[site])) == list(self._plates[site])
            and len(self._plates[site]) == len(variable.shape)
        ]
        return name if name in self._sites else max(owners, key=len, default=name)

    def _chosen(self, variable: Variable, site: str) -> Sequence[str | None]:
        """Return the user's names for the axes of a variable, None where there is none."""
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
    """Return the attributes of every group, of types that netCDF can hold."""
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
    draws = ", ".join(name for name, v in posterior.items() if v.kind == "draw")
    learned = ", ".join(
        name for name, v in posterior.items() if v.kind == "stochastic approximation"
    )
    names = {"draws": draws, "stochastic_approximation": learned}
    return {
        "posterior": {
            **{key: str(value) for key, value in settings.items()},
            **{key: value for key, value in names.items() if value},
            **sampled,
        },
        "sample_stats": sampled,
        "adaptation": sampled,
        "log_likelihood": sampled,
        "posterior_predictive": sampled,
        "moments": common,
        "tuning": common,
        "observed_data": common,
    }
