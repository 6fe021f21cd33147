# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
A finished ``MCMC`` run as an ArviZ object, read from what the run left behind: the draws, and the
``diagnostics()`` of every chain's kernel. The model is not run again.

The run is checked (:func:`_chains`), its tensors are gathered into groups of variables
(:func:`_gather`), every axis gets a name (:class:`_AxisNames`), and the groups go into the
container of the installed ArviZ: ``InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.api import StreamingMCMC
from torch import Tensor

from pyro_aeb._version import __version__

_SAMPLE_DIMS = ("chain", "draw")

_COMMENTS = {
    "draw": "draws of the sampler",
    "stochastic approximation": (
        "the path of a point estimate, not draws from a posterior: its spread is no posterior "
        "uncertainty, and its R-hat or effective sample size is no posterior diagnostic"
    ),
    "observed": "data",
}


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
      that the weights do not enter), ``step_size``, ``inverse_temperature``, ``sa_weight``, and
      ``sparsity``: with pruning the share of all weights that are zero, without it the share of
      sparse weights that rather belong to the narrower component;
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

    chains = _chains(mcmc)
    groups = _gather(mcmc, chains)
    axes = _AxisNames(groups, chains[0]["roles"], chains[0]["dims"], coords or {}, dims or {})
    attributes = _attributes(groups["posterior"], chains[0].get("settings", {}))
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


def _chains(mcmc: object) -> list[dict[str, Any]]:
    """What the kernel of every chain reported at its end, or an error if it is not ours."""
    if isinstance(mcmc, StreamingMCMC):
        raise TypeError(
            "to_arviz() needs draws, but StreamingMCMC keeps none, only their statistics: use "
            "pyro.infer.MCMC, or read mcmc.get_statistics()."
        )
    if not isinstance(mcmc, MCMC):
        raise TypeError(
            f"to_arviz() takes a pyro.infer.MCMC object after its run(), found {mcmc!r}."
        )
    if mcmc._samples is None:
        raise RuntimeError(
            "This MCMC object holds no draws: call its run() first. (Those of an AEBKernel's run "
            "that was cut short are in mcmc.kernel.recover().)"
        )
    chains: Any = mcmc._diagnostics
    if not {"sample_stats", "dims", "roles"} <= chains[0].keys():
        raise TypeError(
            f"to_arviz() reads runs of pyro_aeb.AEBKernel, found one of "
            f"{type(mcmc.kernel).__name__}: use arviz.from_pyro(mcmc) of ArviZ 0.x, or "
            'arviz.from_dict({"posterior": mcmc.get_samples(group_by_chain=True)}) of ArviZ 1.x.'
        )
    return chains


class _Variable(NamedTuple):
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
    sample_dims: tuple[str, ...] = _SAMPLE_DIMS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[len(self.sample_dims) :]

    @property
    def attributes(self) -> dict[str, str]:
        return {} if self.kind is None else {"kind": self.kind, "comment": _COMMENTS[self.kind]}


_Groups = dict[str, dict[str, _Variable]]


def _gather(mcmc: MCMC, chains: list[dict[str, Any]]) -> _Groups:
    """All that the run left behind, by group and variable name; no group but the first is empty."""
    first = chains[0]

    def stack(key: str, name: str) -> np.ndarray:
        return np.stack([_array(chain[key][name]) for chain in chains])

    draws, roles = mcmc.get_samples(group_by_chain=True), first["roles"]
    stats, adaptation = first["sample_stats"], first.get("adaptation", {})
    observed = first.get("observed_data", {})
    moments = [
        _Variable(
            f"{name}_{moment}",
            np.stack([_array(chain["moments"][moment][name]) for chain in chains]),
            None,
            ("chain",),
        )
        for moment, values in first.get("moments", {}).items()
        for name in values
    ]
    groups = {
        "posterior": [_Variable(k, _array(v), roles.get(k, "draw")) for k, v in draws.items()],
        "sample_stats": [_Variable(k, stack("sample_stats", k), None) for k in stats],
        "adaptation": [
            _Variable(k, stack("adaptation", k), "stochastic approximation") for k in adaptation
        ],
        "moments": moments,
        "observed_data": [_Variable(k, _array(v), "observed", ()) for k, v in observed.items()],
    }
    return {
        group: _by_name(variables)
        for group, variables in groups.items()
        if variables or group == "posterior"
    }


def _by_name(variables: Iterable[_Variable]) -> dict[str, _Variable]:
    """The variables under names that netCDF and xarray can hold: no slash, no sample dimension."""
    named: dict[str, _Variable] = {}
    for variable in variables:
        name = variable.source.replace("/", ".")
        while name in named or name in _SAMPLE_DIMS:
            name += "_"
        named[name] = variable
    return named


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:  # which numpy lacks
        value = value.float()
    return value.numpy()


class _AxisNames:
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
        groups: _Groups,
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
        self._reserved.update(_SAMPLE_DIMS)
        self._lengths = {name: len(labels) for name, labels in coords.items()}
        self._used: set[str] = set()
        self._misfits: dict[str, int] = {}

        known = {v.source for variables in groups.values() for v in variables.values()}
        if unknown := dims.keys() - known - plates.keys():
            raise ValueError(f"dims names {sorted(unknown)}, but the run has only {sorted(known)}.")

    def names(self, variable: _Variable) -> tuple[str, ...]:
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

    def _site(self, variable: _Variable) -> str:
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

    def _chosen(self, variable: _Variable, site: str) -> Sequence[str | None]:
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


def _attributes(
    posterior: Mapping[str, _Variable], settings: Mapping[str, Any]
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
    sampled = {**common, "sample_dims": list(_SAMPLE_DIMS)}
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
