# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a run has drawn, as :class:`pyro.infer.MCMC` hands it out, at any time of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from torch import Tensor

from pyro_aeb.mcmc.chain_group import Lane, Plan
from pyro_aeb.mcmc.run_record import RunRecord


class RunResults(MCMC):
    """
    The draws and diagnostics of a run, read from its lanes and from what is kept of them.
    """

    _lanes: list[Lane]
    _record: RunRecord

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """
        The draws made so far, site name to tensor of shape (draws, ...), chain after chain.

        :param num_samples: as many, drawn from them with replacement.
        :param bool group_by_chain: whether to keep the axis of chains, (chains, draws, ...). Of a
            run that was cut short, chains and draws are then left out so that what remains is a
            full table of as many draws as possible; without it, all are there.
        """
        counts = self._counts()
        if not any(counts):
            raise RuntimeError(
                "no draw is kept yet, expected at least one: call run(), or go on with it"
            )
        if group_by_chain or len(set(counts)) == 1:
            return select_samples(self._samples, num_samples, group_by_chain)
        rows = self._rows()
        flat = {
            name: torch.cat([values[chain, :count] for chain, count in enumerate(counts)])[None]
            for name, values in rows.items()
        }
        return select_samples(flat, num_samples, group_by_chain)

    def diagnostics(self) -> dict[str, Any]:
        """
        Effective sample sizes and split Gelman-Rubin of the draws that ``get_samples`` groups by
        chain, and what the kernel knows of every chain of them.
        """
        found: dict[str, Any] = diagnostics(self.get_samples(group_by_chain=True))
        chains, _ = self._table()
        own = dict(zip(chains, self._diagnostics, strict=True))
        for name in own[chains[0]]:
            found[name] = {f"chain {chain}": value[name] for chain, value in own.items()}
        return found

    def summary(self, prob: float = 0.9) -> None:
        """
        Prints a table of the draws that ``get_samples`` groups by chain.

        :param float prob: of the credible interval.
        """
        print_summary(self.get_samples(group_by_chain=True), prob=prob)
        diverging = sum(len(own["divergences"]) for own in self._diagnostics)
        print(f"Number of divergences: {diverging}")

    # -- what pyro.infer.MCMC and to_arviz read

    @property
    def _samples(self) -> dict[str, Tensor] | None:
        """The draws of the chains and up to the length of :meth:`_table`."""
        chains, draws = self._table()
        if not draws:
            return None
        place = slice(chains.start, chains.stop) if isinstance(chains, range) else chains
        return {name: values[place, :draws] for name, values in self._rows().items()}

    @_samples.setter
    def _samples(self, value: None) -> None:
        """Pyro's MCMC sets it to None when it is made."""

    @property
    def _diagnostics(self) -> list[Any]:
        """Of every chain in the table, what its kernel and the store know of it."""
        chains, draws = self._table()
        if not draws:
            return [None]
        kept = self._record.all_rows()
        groups = {g: kept.get(g, {}) for g in ("sample_stats", "adaptation")}
        found: list[Any] = []
        for number in chains:
            lane = self._lane_of(number)
            moments = lane.facts["moments"]
            if isinstance(lane.chains, tuple):
                moments = {m: {n: v[number] for n, v in own.items()} for m, own in moments.items()}
            own = {g: {n: v[number, :draws] for n, v in rows.items()} for g, rows in groups.items()}
            found.append({"observed_data": {}, **lane.facts, "moments": moments, **own})
        return found

    @_diagnostics.setter
    def _diagnostics(self, value: Any) -> None:
        """Pyro's MCMC fills it with None when it is made."""

    def _counts(self) -> list[int]:
        """How many draws of every chain are kept."""
        return [self._plan.kept_of(self._lane_of(i).draws) for i in range(self.num_chains)]

    def _rows(self) -> dict[str, Tensor]:
        """All rows of the posterior, those of draws that have not been made included."""
        rows = self._record.rows("posterior")
        transforms = self.transforms or {}
        return {n: transforms[n].inv(v) if n in transforms else v for n, v in rows.items()}

    def _table(self) -> tuple[Sequence[int], int]:
        """Chains, and a number of draws that all of them have: as large a table as there is."""
        counts = self._counts()
        draws = max(counts, key=lambda least: least * sum(count >= least for count in counts))
        chains = [chain for chain, count in enumerate(counts) if count >= draws]
        first, last = chains[0], chains[-1]
        whole = len(chains) == last - first + 1
        return (range(first, last + 1) if whole else chains), draws

    @property
    def _plan(self) -> Plan:
        return self._record.plan

    def _lane_of(self, number: int) -> Lane:
        return self._lanes[number if len(self._lanes) > 1 else 0]
