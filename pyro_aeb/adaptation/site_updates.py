# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""One sweep of equation (8) over the latent sites that have updates of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.equations import stochastic_approximation
from pyro_aeb.data.arguments import vmap_axes
from pyro_aeb.latents.contract import (
    AveragedStatistics,
    Seen,
    check_statistics,
    check_value,
)
from pyro_aeb.model.structure import LearnedSite


def statistics_name(site: str) -> str:
    """Return the key of a site's averaged statistics, beside the sites' values."""
    return f"{site}/statistics"


class SiteUpdates:
    """
    The updates of all such sites. The state is a dict of the sites' values; from the first step on
    it holds averaged statistics too, by :func:`statistics_name`.

    :param sites: the sites, in the order of the model.
    """

    def __init__(self, sites: Sequence[LearnedSite]) -> None:
        self._sites = tuple(sites)

    def init(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state before the first step."""
        return {
            site.name: check_value(site.name, site.update.init(values[site.name]), site.shape)
            for site in self._sites
        }

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sites' values, without statistics."""
        return {site.name: state[site.name] for site in self._sites}

    def update(
        self, state: Mapping[str, Tensor], seen: Mapping[str, Seen], omega: float | Tensor
    ) -> dict[str, Tensor]:
        """
        Return the state after one sweep.

        :param state: before it, each value of shape (...) + its own.
        :param omega: weight of (8).
        """
        after: dict[str, Tensor] = {}
        for site in self._sites:
            name, update, old = site.name, site.update, state[site.name]
            if isinstance(update, AveragedStatistics):
                key = statistics_name(name)
                new = check_statistics(name, _run(update.statistics, site, old, seen[name]))
                before = state.get(key)
                if before is None:
                    before = _run(update.first, site, old, new, old)
                check_statistics(name, before, new.shape)
                after[key] = stochastic_approximation(before, new, omega)
                maximum = _run(update.maximiser, site, old, after[key])
                after[name] = check_value(name, maximum, old.shape).to(old.dtype)
            else:
                value = _run(update.update, site, old, seen[name])
                new = check_value(name, value, old.shape).to(old.dtype)
                after[name] = stochastic_approximation(old, new, omega)
        return after


def _run(function: Callable[..., Any], site: LearnedSite, old: Tensor, *arguments: Any) -> Any:
    """Call a part of an update, for every chain where the site's value has an axis of chains."""
    if old.dim() > len(site.shape):
        function = torch.vmap(function, in_dims=vmap_axes(arguments))
    return function(*arguments)
