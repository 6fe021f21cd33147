# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The latent sites that updates of their own learn: which they are, whether a closed form holds for
them, and one sweep of equation (8) over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.adaptation.equations import stochastic_approximation
from pyro_aeb.data.arguments import axes
from pyro_aeb.latents.contract import (
    AveragedStatistics,
    Seen,
    check_statistics,
    check_value,
)
from pyro_aeb.model.structure import LearnedSite


def statistics_name(site: str) -> str:
    """The name of the statistics that are averaged for a site, beside the sites' values."""
    return f"{site}/statistics"


class SiteUpdates:
    """
    The sweep over the sites that updates learn. Their values are a dict, by site; from the first
    step on with it stand averaged statistics, by :func:`statistics_name`.

    :param sites: from :func:`learned_sites`.
    """

    def __init__(self, sites: Sequence[LearnedSite]) -> None:
        self._sites = tuple(sites)

    def init(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """
        The values before the first step.

        :param values: what the kernel's ``init_strategy`` gives, by site.
        """
        return {
            site.name: check_value(site.name, site.update.init(values[site.name]), site.shape)
            for site in self._sites
        }

    def values(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sites' values alone."""
        return {site.name: held[site.name] for site in self._sites}

    def update(
        self, held: Mapping[str, Tensor], seen: Mapping[str, Seen], weight: float | Tensor
    ) -> dict[str, Tensor]:
        """
        One sweep of (8).

        :param held: values and statistics before it, of shape (...) + their own.
        :param seen: by site, at these values.
        :param float weight: omega at this step.
        """
        after: dict[str, Tensor] = {}
        for site in self._sites:
            name, update, old = site.name, site.update, held[site.name]
            if isinstance(update, AveragedStatistics):
                key = statistics_name(name)
                new = check_statistics(name, _run(update.statistics, site, old, seen[name]))
                before = held.get(key)
                if before is None:
                    before = _run(update.first, site, old, new, old)
                check_statistics(name, before, new.shape)
                after[key] = stochastic_approximation(before, new, weight)
                found = _run(update.maximiser, site, old, after[key])
                after[name] = check_value(name, found, old.shape).to(old.dtype)
            else:
                found = _run(update.update, site, old, seen[name])
                new = check_value(name, found, old.shape).to(old.dtype)
                after[name] = stochastic_approximation(old, new, weight)
        return after


def _run(function: Callable[..., Any], site: LearnedSite, old: Tensor, *given: Any) -> Any:
    """Calls a part of an update; of each chain, where the site's value has an axis of chains."""
    if old.dim() > len(site.shape):
        function = torch.vmap(function, in_dims=axes(given))
    return function(*given)
