# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The effective sample size at which a run stops, and the limits at which it stops without."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from pyro_aeb.errors import ModelError
from pyro_aeb.storage.xarray_variables import as_array
from pyro_aeb.validation import names, positive

LIMIT = 10_000
"""The most draws of every chain, unless ``num_samples`` says otherwise."""

WARMUP = 1_000
"""Draws of warm-up, unless ``warmup_steps`` says otherwise."""

FIRST = 100
"""The fewest draws of every chain before the effective sample size is computed."""

SHORTEST, LONGEST = 1.1, 2.0
"""Length of a run after a further round, over its length before."""


class TimeLimit(Exception):
    """Raised between two steps when the seconds of a run have passed."""


class Smallest(NamedTuple):
    """The smallest effective sample size, and the site that has it."""

    size: float
    site: str

    def __str__(self) -> str:
        where = f" (site {self.site!r})" if self.site else ""
        return f"the smallest effective sample size is {self.size:.0f}{where}"


@dataclass(frozen=True)
class Goal:
    """
    The end of a run.

    :param float ess: the smallest bulk effective sample size, over all chains.
    :param sites: those that need it, None for all that are sampled.
    :param seconds: the longest that a call of ``run`` may take, None for no limit.
    """

    ess: float
    sites: tuple[str, ...] | None = None
    seconds: float | None = None

    def options(self) -> dict[str, Any]:
        """Return the options of ``MCMC`` that make this goal."""
        sites = None if self.sites is None else list(self.sites)
        return {"ess": self.ess, "ess_sites": sites, "max_seconds": self.seconds}

    def first_length(self, chains: int, limit: int) -> int:
        """Return the draws of every chain after which the effective sample size is computed."""
        return min(max(FIRST, math.ceil(self.ess / chains)), limit)

    def next_length(self, length: int, size: float, limit: int) -> int:
        """Return the draws at which it is computed next: as many as should be enough."""
        factor = SHORTEST * self.ess / size if size > 0.0 else LONGEST
        return min(math.ceil(length * min(max(factor, SHORTEST), LONGEST)), limit)

    def watch(self, between: Callable[[], object]) -> Callable[[], None]:
        """Return a function that also raises :class:`TimeLimit`, once the seconds have passed."""
        end = math.inf if self.seconds is None else time.monotonic() + self.seconds

        def check() -> None:
            between()
            if time.monotonic() >= end:
                raise TimeLimit

        return check

    def smallest(self, draws: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Smallest:
        """
        Return the smallest effective sample size, of at most 200 coordinates a site. Coordinates
        that have one value in all draws have none; where no other is left the size is 0.

        :param draws: of shape (chains, draws, ...).
        :param metadata: of a chain.
        :raises ModelError: if there is no such site.
        """
        chosen = self.chosen({"roles": {n: metadata["roles"].get(n, "draw") for n in draws}})
        sizes = [Smallest(smallest_size(draws[name]), name) for name in chosen]
        sizes = [found for found in sizes if not math.isnan(found.size)]
        return min(sizes, default=Smallest(0.0, ""))

    def chosen(self, metadata: Mapping[str, Any]) -> list[str]:
        """
        Return the sites that need the size.

        :param metadata: of a chain that has started.
        :raises ModelError: if there is no such site.
        """
        left_out = metadata.get("moments", {}).get("mean", {})  # only their moments are kept
        roles = metadata["roles"].items()
        sampled = [name for name, role in roles if role == "draw" and name not in left_out]
        chosen = sampled if self.sites is None else list(self.sites)
        if not chosen or not set(chosen) <= set(sampled):
            raise ModelError(
                f"ess_sites is {self.sites}, expected names of sampled sites that are kept, some "
                f"of {sampled}; a learned latent is a point estimate and has no effective sample "
                "size"
            )
        return chosen


def make_goal(ess: Any, sites: Any, seconds: Any) -> Goal | None:
    """
    Return the goal of the options of a run, None where there is none.

    :raises TypeError: if an option is of the wrong kind.
    :raises ValueError: if one is not valid, or is given without ``ess``.
    """
    if ess is None:
        for name, value in {"ess_sites": sites, "max_seconds": seconds}.items():
            if value is not None:
                raise ValueError(f"{name} is {value!r} without ess; give ess=400, for example")
        return None
    return Goal(
        positive("ess", ess),
        names("ess_sites", sites),
        None if seconds is None else positive("max_seconds", seconds),
    )


def smallest_size(draws: Tensor) -> float:
    """
    Return the smallest bulk effective sample size of a site, NaN where no coordinate moves, 0 where
    there are too few draws.
    """
    # On use: SciPy takes half a second.
    from pyro_aeb.mcmc.rank_statistics import effective_size, evenly_spaced

    flat = draws.reshape(*draws.shape[:2], draws[0, 0].numel())
    values = as_array(flat[..., evenly_spaced(flat.shape[-1])])
    values = values[..., (values != values[:1, :1]).any((0, 1))]
    if values.shape[-1] == 0:
        return math.nan
    sizes: Sequence[float] = effective_size(values).tolist()
    return min(0.0 if math.isnan(size) else size for size in sizes)
