# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains distributed over the ranks of a process group, as ``torchrun`` starts them.

All ranks run the same program. Rank r of w runs chains r, r + w, r + 2 w, ... and writes their
checkpoints, without communication. At the end the draws of every chain are broadcast to all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import pyro
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_aeb.data.fingerprint import check_same_on_all_ranks
from pyro_aeb.data.ranks import Ranks, process_ranks
from pyro_aeb.errors import RankError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.chain_group import ChainGroup
from pyro_aeb.mcmc.run_record import RunRecord
from pyro_aeb.model.side_effects import global_random_state, set_global_random_state
from pyro_aeb.storage.recorder import map_draws

TIMEOUT = timedelta(days=30)
"""The longest that a rank waits for others whose chains take longer."""

POLL_SECONDS = 0.05
"""Seconds between two checks for Ctrl-C of a rank that waits."""


class RankReport(NamedTuple):
    """
    The result of a rank.

    :param draws: chain to the number of its draws.
    :param layout: group and name to shape and dtype of a draw.
    :param failure: the error that stopped the rank, None if none did.
    """

    draws: dict[int, int]
    metadata: dict[int, dict[str, Any]]
    layout: dict[str, dict[str, tuple[torch.Size, torch.dtype]]]
    failure: str | None


class ProcessGroup:
    """
    The ranks of a run, with a process group on the CPU.

    :param Ranks ranks: rank of this process, and number of ranks.
    """

    def __init__(self, ranks: Ranks, group: Any) -> None:
        self.ranks = ranks
        self._group = group

    def own(self, groups: Sequence[ChainGroup]) -> Sequence[ChainGroup]:
        """Return the chain groups, of one chain each, that this rank runs."""
        return groups[self.ranks.rank :: self.ranks.world]

    def owner(self, chain: int) -> int:
        """Return the rank that runs a chain."""
        return chain % self.ranks.world

    def all_gather(self, value: Any) -> list[Any]:
        """All-gather a small picklable object, one per rank."""
        values: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self, between: Callable[[], object]) -> None:
        """
        Wait for all ranks.

        :param between: called now and then; an exception that it raises ends the wait.
        """
        work = dist.barrier(group=self._group, async_op=True)
        while work is not None and not work.is_completed():
            between()
            time.sleep(POLL_SECONDS)
        if work is not None:
            work.wait()

    def broadcast(self, draws: Tensor, source: int) -> None:
        """Broadcast draws of the rank ``source``, in place."""
        if not draws.numel():
            return
        buffer = draws.cpu().contiguous()  # the draws themselves where they are on the CPU
        dist.broadcast(buffer.view(torch.uint8), src=source, group=self._group)
        if buffer is not draws and self.ranks.rank != source:
            draws.copy_(buffer)


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """
    Make a group of the ranks of the default process group. It works on the CPU whatever the default
    one works on, and has a longer timeout.

    :raises RuntimeError: if there is no process group.
    """
    ranks = process_ranks('chain_method="distributed"')
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    try:
        yield ProcessGroup(ranks, group)
    finally:
        dist.destroy_process_group(group)


def synchronize(
    ranks: ProcessGroup, groups: Sequence[ChainGroup], settings: Mapping[str, Any]
) -> None:
    """
    Check that all ranks start the same run, and set the draws of every chain to those that its rank
    has.

    :param settings: values that have to be the same on all ranks.
    :raises ValueError: if they are not, or another rank has more draws of a chain than its own.
    """
    gathered = ranks.all_gather((settings, [group.draws for group in groups]))
    check_same_on_all_ranks([settings for settings, _ in gathered])
    for chain, group in enumerate(groups):
        counts, owner = [draws[chain] for _, draws in gathered], ranks.owner(chain)
        if max(counts) > counts[owner]:
            raise ValueError(
                f"rank {owner} is to continue chain {chain} and has {counts[owner]} of its "
                f"draws, but rank {counts.index(max(counts))} has {max(counts)}. Give all ranks "
                "one checkpoint folder, which every machine can read; or, where every machine has "
                "one of its own, start as many processes as before"
            )
        group.draws = counts[owner]


def run_on_ranks(
    ranks: ProcessGroup,
    kernel: AEBKernel,
    groups: Sequence[ChainGroup],
    record: RunRecord,
    run_group: Callable[[ChainGroup], None],
    between: Callable[[], object],
) -> None:
    """
    Run this rank's chains, wait for the other ranks, and broadcast all draws to all ranks.

    :param groups: one for every chain of the run.
    :param between: raises where the run is to stop.
    :raises RankError: if another rank's chains were stopped; the draws are broadcast before.
    """
    failure = _run_own(ranks, kernel, groups, record, run_group)
    try:
        # A noted Ctrl-C has stopped the chains, and is not to stop the wait for the others too.
        ranks.barrier(int if isinstance(failure, KeyboardInterrupt) else between)
        reports = _broadcast_draws(ranks, groups, record, failure)
    except RuntimeError as error:
        if failure is not None:
            raise failure from error
        raise RankError(
            "another rank ended before its chains did (an error, killed, or out of memory). This "
            "rank has the draws of its own chains only; start the program again, and resume by "
            "MCMC.resume(path, model) if there is a checkpoint"
        ) from error
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report.failure is not None:
            raise RankError(
                f"rank {rank} stopped: {report.failure}. The draws finished before are kept, on "
                "all ranks"
            )


def _run_own(
    ranks: ProcessGroup,
    kernel: AEBKernel,
    groups: Sequence[ChainGroup],
    record: RunRecord,
    run_group: Callable[[ChainGroup], None],
) -> BaseException | None:
    """Run this rank's chains; return the error that stopped them."""
    (base, *_) = ranks.all_gather(int(torch.randint(2**31, ())))
    before = global_random_state()
    try:
        for group in ranks.own(groups):
            if group.draws < record.plan.draws:
                # Torch's own numbers too are another stream in every chain, wherever it runs.
                pyro.set_rng_seed((base + group.first) % 2**32)
                try:
                    run_group(group)
                finally:
                    if group.chain is not None:  # saved with its global random state
                        group.restore(group.snapshot(kernel), f"the state of chain {group.first}")
    except BaseException as error:
        return error
    finally:
        set_global_random_state(before)
    return None


def _broadcast_draws(
    ranks: ProcessGroup,
    groups: Sequence[ChainGroup],
    record: RunRecord,
    failure: BaseException | None,
) -> list[RankReport]:
    """Broadcast the draws and metadata of every chain to all ranks; return all ranks' reports."""
    own = {group.first: group for group in ranks.own(groups)}
    report = RankReport(
        draws={chain: group.draws for chain, group in own.items()},
        metadata={chain: _to_send(chain, group.metadata) for chain, group in own.items()},
        layout=map_draws(lambda values: (values.shape[2:], values.dtype), record.read()),
        failure=None if failure is None else f"{type(failure).__name__}: {failure}",
    )
    reports: list[RankReport] = ranks.all_gather(report)
    for report in reports:
        for chain, count in report.draws.items():
            if chain not in own:
                groups[chain].draws = count
                groups[chain].metadata = report.metadata[chain]
    layout = next((report.layout for report in reports if report.layout), {})
    stored = record.allocate(layout)
    for chain, group in enumerate(groups):
        kept = record.plan.kept_of(group.draws)
        for name, sites in layout.items():
            for site in sites:
                ranks.broadcast(stored[name][site][chain, :kept], ranks.owner(chain))
    return reports


def _to_send(chain: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata on the CPU; the data, which all chains share, with those of chain 0 only."""
    selected = {n: value for n, value in metadata.items() if n != "observed_data" or chain == 0}
    return tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), selected)
