# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Values of the data's sites at every draw and datum: log densities and replicated data.

The model runs once for every batch and draw, of which one at a time is held beside the results.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_aeb.data.arguments import Arguments, leading_lengths
from pyro_aeb.errors import ModelError, SaveSizeWarning, shorten
from pyro_aeb.model.sites import as_numbers, is_enumerable
from pyro_aeb.model.summed_out import SummedOut
from pyro_aeb.nn.batches import Batches
from pyro_aeb.storage.xarray_variables import as_array

LARGE = 1 << 30
"""Bytes of results above which their size is said."""


class PlateParts(Messenger):
    """
    A model whose plate takes a part of its data, which are gone through in order.

    :ivar fresh: the number of data at the end of the part that were in none before; 0 for all.
    :ivar plates: the plate: its size, and that of the part.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self._model = model
        self._indices: Tensor | None = None
        self._device = torch.device("cpu")
        self.fresh = 0
        self.plates: dict[str, tuple[int, int]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self:
            return self._model(*args, **kwargs)

    def iterate(self, batches: Batches, device: torch.device, limit: int | None) -> Iterator[Any]:
        """Yield the model's arguments for every part of every batch, on a device."""
        self._device = device
        for arguments in batches.iterate(device, limit):
            self._indices, self.fresh, self.plates = None, 0, {}
            yield arguments
            if len(self.plates) > 1:
                raise ModelError(
                    f"plates {sorted(self.plates)} each take a part of their data, expected one "
                    "such plate, whose parts are gone through in order; give all but one "
                    "subsample_size=None"
                )
            for size, batch in self.plates.values() if limit is None else ():
                for start in range(batch, size, batch):
                    end = min(start + batch, size)
                    self._indices = torch.arange(end - batch, end, device=device)
                    self.fresh = end - start
                    yield arguments
            self._indices = None

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        size, batch = msg["fn"].size, msg["fn"].subsample_size
        if batch is not None and batch < size:
            self.plates[msg["name"]] = (size, batch)
            first = torch.arange(batch, device=self._device)
            msg["value"] = first if self._indices is None else self._indices


class PartBatches:
    """
    All parts of a model's data, or of every batch of a loader, in the place of
    :class:`~pyro_aeb.nn.batches.Batches`.
    """

    def __init__(self, model: PlateParts, batches: Batches) -> None:
        self._model = model
        self._batches = batches

    def __len__(self) -> int:
        return 0  # the size of plates is not known yet

    def iterate(self, device: torch.device, limit: int | None = None) -> Iterator[Arguments]:
        """Yield the model's arguments once for every part."""
        return self._model.iterate(self._batches, device, limit)


class _Record(Messenger):
    """Give latent sites the values of a draw; record the data's sites and some computed ones."""

    def __init__(self, draw: Mapping[str, Tensor], sites: Collection[str]) -> None:
        super().__init__()
        self._draw = draw
        self._sites = sites
        self.sites: dict[str, Any] = {}
        self.discrete: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            return
        if name in self._sites:
            self.sites[name] = dict(msg)
        elif not msg["is_observed"]:
            if name not in self._draw and is_enumerable(msg):
                self.discrete.append(name)
                return
            if name not in self._draw:
                raise ModelError(
                    f"the draws hold {shorten(sorted(self._draw))} but not the latent site "
                    f"{name!r}, which the model needs; name all latent sites in the kernel's "
                    "save=[...] (or MCMC's save_params)"
                )
            msg["value"] = self._draw[name].clone()  # a model may write into it
            msg["done"] = msg["stop"] = True


def record(
    model: Callable[..., Any],
    draw: Mapping[str, Tensor],
    arguments: Arguments,
    sites: Collection[str],
) -> tuple[dict[str, Any], list[str]]:
    """
    Run a model at a draw's values; return the messages of some of its observed sites, and the
    discrete sites that the draws do not hold, which are drawn anew.
    """
    with _Record(draw, sites) as handler:
        model(*arguments.args, **arguments.kwargs)
    return handler.sites, handler.discrete


class Gather:
    """
    Gathers the values of the data's sites, called for every draw of every batch.

    :param batches: the number of batches, 0 if it is not known.
    :param sites: names of the data's sites.
    :param int draws: the number of draws.
    :param bool log_likelihood: whether log densities are gathered.
    :param bool replicate: whether data are drawn at every draw.
    """

    def __init__(
        self,
        model: PlateParts,
        sites: Collection[str],
        draws: int,
        batches: int,
        log_likelihood: bool,
        replicate: bool,
    ) -> None:
        self._model = model
        self._sites = sites
        self._draws = draws
        self._batches = batches
        self._log_likelihood = log_likelihood
        self._replicate = replicate
        self._summed: SummedOut | None = None
        self._axes: dict[str, int | None] = {}
        self._events: dict[str, int] = {}
        self._rows: list[dict[tuple[str, str], np.ndarray]] = []
        self._parts: dict[tuple[str, str], list[np.ndarray]] = {}

    def __call__(self, i: int, draw: Mapping[str, Tensor], arguments: Arguments) -> None:
        """Add the values of draw number i for the current batch."""
        row = {}
        sites, discrete = record(self._model, draw, arguments, self._sites)
        summed = self._sum_out(draw, arguments) if discrete and self._log_likelihood else {}
        for name, site in sites.items():
            axis = self._axes[name] = _data_axis(site, self._model, arguments)
            event = self._events[name] = int(site["fn"].event_dim)
            if axis is None and (name, "") in self._parts:
                continue  # the same data in every batch
            for kind, values in self._values(site, summed.get(name)).items():
                place = axis if axis is None or kind == "log_likelihood" else axis - event
                if self._model.fresh and place is not None:
                    start = values.shape[place] - self._model.fresh
                    values = values.narrow(place, start, self._model.fresh)
                row[name, kind] = as_array(values)
        self._rows.append(row)
        if len(self._rows) == self._draws:
            self._finish_batch()

    def _sum_out(self, draw: Mapping[str, Tensor], arguments: Arguments) -> dict[str, Tensor]:
        """Return log densities whose discrete sites are summed out, by site."""
        if self._summed is None:
            self._summed = SummedOut(self._model, *arguments)
        with _Record(draw, ()):
            name, log_prob = self._summed.log_likelihood(*arguments)
        return {name: log_prob}

    def _values(self, site: Any, log_prob: Tensor | None) -> dict[str, Tensor]:
        values = {}
        if site["is_observed"]:
            if not self._rows:
                values["observed"] = torch.as_tensor(site["value"])
            if self._log_likelihood:
                values["log_likelihood"] = log_likelihood(site) if log_prob is None else log_prob
        if self._replicate:
            values["replicated"] = site["fn"].sample()
        return values

    def _finish_batch(self) -> None:
        for name, kind in self._rows[0]:
            arrays = [row[name, kind] for row in self._rows if (name, kind) in row]
            self._parts.setdefault((name, kind), []).append(np.stack(arrays))
        if not self._parts.keys() & {(name, "") for name in self._sites}:
            self._parts |= {(name, ""): [] for name in self._sites}
            self._warn_of_size()
        self._rows = []

    def _warn_of_size(self) -> None:
        total = sum(array.nbytes for parts in self._parts.values() for array in parts)
        parts = [math.ceil(size / part) for size, part in self._model.plates.values()]
        total *= max(self._batches, 1) * math.prod(parts)
        if total > LARGE:
            warnings.warn(
                f"the values of {self._draws} draws for every datum take {total / 2**30:.1f} GiB; "
                "keep fewer draws (thinning= of MCMC), or give a part of the data as data=",
                SaveSizeWarning,
                stacklevel=6,
            )

    def results(self) -> dict[str, dict[str, np.ndarray]]:
        """
        Return arrays by site and kind, ``observed``, ``log_likelihood`` and ``replicated``. All but
        the data have a leading axis of draws.
        """
        results: dict[str, dict[str, np.ndarray]] = {}
        for name, kind in [key for key in self._parts if key[1]]:
            parts, axis = self._parts.pop((name, kind)), self._axes[name]
            values = parts[0]
            if len(parts) > 1 and axis is not None:
                event = 0 if kind == "log_likelihood" else self._events[name]
                values = np.concatenate(parts, axis - event)
            results.setdefault(name, {})[kind] = values[0] if kind == "observed" else values
        return results


def log_likelihood(site: Any) -> Tensor:
    """
    Return the log density of every datum at a site, the model's own without the scale N/n of its
    plates. Masked data have 0.
    """
    value = as_numbers(site["fn"], torch.as_tensor(site["value"]))
    log_prob: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        scale = scale * (frame.size / (frame.full_size or frame.size))
    if isinstance(scale, Tensor) or not math.isclose(scale, 1.0):  # weights of the data
        log_prob = log_prob * scale
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
    return log_prob


def _data_axis(site: Any, model: PlateParts, arguments: Arguments) -> int | None:
    """Return the axis of the data that batches divide, from the end of the batch shape."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    lengths = leading_lengths(arguments)
    for is_divided in (
        lambda frame: frame.name in model.plates,
        lambda frame: frame.size != (frame.full_size or frame.size),
        lambda frame: frame.size in lengths,
    ):
        for frame in filter(is_divided, frames):
            return int(frame.dim)
    return None
