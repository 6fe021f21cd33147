# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The draws and diagnostics of a run, with the interface of :class:`pyro.infer.MCMC`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from pyro.ops import stats
from torch import Tensor

from pyro_aeb.mcmc.chain_group import ChainGroup, Plan
from pyro_aeb.mcmc.run_record import RunRecord

LEAST_DRAWS = 4
"""Draws of a chain of which Pyro has statistics: it needs two in each half of a chain."""

BLOCK = 2**20
"""Numbers of draws whose diagnostics are computed at a time, in some ten times their memory."""


class RunResults(MCMC):
    """The draws and diagnostics of a run, which can be read at any time."""

    _groups: list[ChainGroup]
    _record: RunRecord

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """
        Return the draws made so far, site name to tensor of shape (draws, ...), chain after chain.

        :param num_samples: number of draws to choose at random, with replacement.
        :param bool group_by_chain: whether to keep the axis of chains, (chains, draws, ...). If a
            run was cut short, chains or draws are then left out, so that the others form a full
            table with as many draws as possible.
        :raises RuntimeError: if there are none.
        """
        counts = self._counts()
        if not any(counts):
            raise RuntimeError(
                "no draw is kept yet, expected at least one: call run(), or continue it"
            )
        if group_by_chain or len(set(counts)) == 1:
            return select_samples(self._samples, num_samples, group_by_chain)
        flat = {
            name: torch.cat([values[chain, :count] for chain, count in enumerate(counts)])[None]
            for name, values in self._posterior().items()
        }
        return select_samples(flat, num_samples, group_by_chain)

    def diagnostics(self) -> dict[str, Any]:
        """
        Return effective sample sizes and split Gelman-Rubin statistics of the draws that
        ``get_samples`` groups by chain, and the kernel's diagnostics of each of these chains. Both
        statistics are NaN of fewer than four draws.
        """
        draws = self.get_samples(group_by_chain=True)
        with _own_statistics(draws):
            result: dict[str, Any] = {name: _diagnose(value) for name, value in draws.items()}
        chains, _ = self._table()
        by_chain = dict(zip(chains, self._diagnostics, strict=True))
        for name in by_chain[chains[0]]:
            result[name] = {f"chain {chain}": values[name] for chain, values in by_chain.items()}
        return result

    def summary(self, prob: float = 0.9) -> None:
        """
        Print a table of the draws that ``get_samples`` groups by chain. Effective sample size and
        R-hat are NaN of fewer than four draws, and the standard deviation is of one.

        :param float prob: of the credible interval.
        """
        draws = self.get_samples(group_by_chain=True)
        with _own_statistics(draws), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"std\(\)", UserWarning)  # of one draw
            print_summary(draws, prob=prob)
        diverging = sum(len(chain["divergences"]) for chain in self._diagnostics)
        print(f"Number of divergences: {diverging}")

    # -- read by pyro.infer.MCMC and to_arviz

    @property
    def _samples(self) -> dict[str, Tensor] | None:
        """The draws of :meth:`_table`."""
        chains, draws = self._table()
        if not draws:
            return None
        place = slice(chains.start, chains.stop) if isinstance(chains, range) else chains
        return {name: values[place, :draws] for name, values in self._posterior().items()}

    @_samples.setter
    def _samples(self, value: None) -> None:
        """Ignore it: Pyro's MCMC sets it to None when it is made."""

    @property
    def _diagnostics(self) -> list[Any]:
        """The kernel's diagnostics of every chain of :meth:`_table`."""
        chains, draws = self._table()
        if not draws:
            return [None]
        stored = self._record.read()
        result: list[Any] = []
        for chain in chains:
            recorded = {
                group: {name: x[chain, :draws] for name, x in stored.get(group, {}).items()}
                for group in ("sample_stats", "adaptation")
            }
            result.append({"observed_data": {}, **self._metadata(chain), **recorded})
        return result

    @_diagnostics.setter
    def _diagnostics(self, value: Any) -> None:
        """Ignore it: Pyro's MCMC fills it with None when it is made."""

    def _metadata(self, chain: int) -> dict[str, Any]:
        """Return the metadata of a chain, with moments of its own."""
        group = self._group_of(chain)
        if not group.vectorized:
            return group.metadata
        moments = group.metadata["moments"]
        own = {key: {n: x[chain] for n, x in sites.items()} for key, sites in moments.items()}
        return {**group.metadata, "moments": own}

    def _counts(self) -> list[int]:
        """Return the number of kept draws of every chain."""
        return [self._plan.kept_of(self._group_of(i).draws) for i in range(self.num_chains)]

    def _posterior(self) -> dict[str, Tensor]:
        """Return all draws, shape (chains, draws, ...); those not made yet are undefined."""
        draws = self._record.read().get("posterior", {})
        transforms = self.transforms or {}
        return {n: transforms[n].inv(x) if n in transforms else x for n, x in draws.items()}

    def _table(self) -> tuple[Sequence[int], int]:
        """Return chains and a number of draws that all of them have, so that most draws are in."""
        counts = self._counts()
        draws = max(counts, key=lambda least: least * sum(count >= least for count in counts))
        chains = [chain for chain, count in enumerate(counts) if count >= draws]
        first, last = chains[0], chains[-1]
        is_range = len(chains) == last - first + 1
        return (range(first, last + 1) if is_range else chains), draws

    @property
    def _plan(self) -> Plan:
        return self._record.plan

    def _group_of(self, chain: int) -> ChainGroup:
        return self._groups[chain if len(self._groups) > 1 else 0]


@contextmanager
def _own_statistics(draws: Mapping[str, Tensor]) -> Iterator[None]:
    """
    Give Pyro's effective sample size torch's cumulative minimum, of the same values: Pyro's own
    makes a table of draws times draws for every weight. Of too few draws, on which Pyro fails, give
    NaN.

    :param draws: by site, of shape (chains, draws, ...).
    """
    functions: dict[str, Any] = {"_cummin": lambda values: values.cummin(0).values}
    if any(values.shape[1] < LEAST_DRAWS for values in draws.values()):
        functions |= dict.fromkeys(("effective_sample_size", "split_gelman_rubin"), _unknown)
    own = {name: getattr(stats, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(stats, name, function)
        yield
    finally:
        for name, function in own.items():
            setattr(stats, name, function)


def _unknown(draws: Tensor) -> Tensor:
    """Return NaN for every coordinate."""
    return torch.full_like(draws[0, 0], math.nan)


def _diagnose(draws: Tensor) -> dict[str, Tensor]:
    """Return Pyro's diagnostics of a site, draws of shape (chains, draws, ...)."""
    flat = draws.reshape(*draws.shape[:2], -1)
    width = max(1, BLOCK // max(1, flat.shape[:2].numel()))
    parts = [diagnostics({"": part})[""] for part in flat.split(width, dim=-1)]
    shape = draws.shape[2:]
    return {name: torch.cat([part[name] for part in parts]).reshape(shape) for name in parts[0]}
