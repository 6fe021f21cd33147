# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains spread over the processes of a process group, as ``torchrun`` starts them.

Every process runs the same program. Rank r of w advances chains r, r + w, r + 2 w, ... and writes
their checkpoints; nothing passes between ranks until the chains have ended. Then each sends the
draws of its chains to all others, straight into the rows set aside for them.
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

from pyro_aeb.data.fingerprint import check_same_everywhere
from pyro_aeb.data.ranks import Ranks, the_ranks
from pyro_aeb.errors import RankError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.chain_group import Lane
from pyro_aeb.mcmc.run_record import RunRecord
from pyro_aeb.model.side_effects import global_random_state, set_global_random_state

PATIENCE = timedelta(days=30)
"""How long a rank waits for others whose chains take longer."""

LOOK_SECONDS = 0.05
"""How often a rank that waits looks for Ctrl-C."""


class Outcome(NamedTuple):
    """
    What a rank tells the others of its chains.

    :param draws: chain to the number of draws it has made.
    :param facts: chain to what its kernel said of it.
    :param layout: group and name to shape and dtype of a draw.
    :param failure: what stopped the rank, None if nothing did.
    """

    draws: dict[int, int]
    facts: dict[int, dict[str, Any]]
    layout: dict[str, dict[str, tuple[torch.Size, torch.dtype]]]
    failure: str | None


class Company:
    """
    The ranks of a run, and a process group of their own on the CPU.

    :param Ranks ranks: this process's place.
    :param group: the process group.
    """

    def __init__(self, ranks: Ranks, group: Any) -> None:
        self.ranks = ranks
        self._group = group

    def own(self, lanes: Sequence[Lane]) -> Sequence[Lane]:
        """Those of one chain each that this rank advances."""
        return lanes[self.ranks.rank :: self.ranks.world]

    def owner(self, chain: int) -> int:
        """The rank that advances a chain."""
        return chain % self.ranks.world

    def tell(self, own: Any) -> list[Any]:
        """What every rank has told, in their order; small things."""
        found: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(found, own, group=self._group)
        return found

    def wait(self, between: Callable[[], object]) -> None:
        """
        Returns once every rank is here.

        :param between: called now and then; what it raises ends the wait.
        """
        arrival = dist.barrier(group=self._group, async_op=True)
        while arrival is not None and not arrival.is_completed():
            between()
            time.sleep(LOOK_SECONDS)
        if arrival is not None:
            arrival.wait()

    def send(self, rows: Tensor, source: int) -> None:
        """Makes the rows of all ranks those of the rank ``source``, in place."""
        if not rows.numel():
            return
        there = rows.cpu().contiguous()  # the rows themselves where they are on the CPU
        dist.broadcast(there.view(torch.uint8), src=source, group=self._group)
        if there is not rows and self.ranks.rank != source:
            rows.copy_(there)


@contextmanager
def company() -> Iterator[Company]:
    """
    The ranks of the default process group, with a group of their own: it works on the CPU whatever
    the default one works on, and waits longer.

    :raises RuntimeError: if there is no process group.
    """
    ranks = the_ranks('chain_method="distributed"')
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Company(ranks, group)
    finally:
        dist.destroy_process_group(group)


def agree(ranks: Company, lanes: Sequence[Lane], facts: Mapping[str, Any]) -> None:
    """
    Has all ranks start from the same: how far every chain is, as the rank knows that advances it.

    :param facts: what has to be the same on all ranks.
    :raises ValueError: if it is not, or another rank knows of more draws of a chain.
    """
    told = ranks.tell((facts, [lane.draws for lane in lanes]))
    check_same_everywhere([facts for facts, _ in told])
    for number, lane in enumerate(lanes):
        counts, owner = [draws[number] for _, draws in told], ranks.owner(number)
        if max(counts) > counts[owner]:
            raise ValueError(
                f"rank {owner} is to go on with chain {number} and has {counts[owner]} of its "
                f"draws, but rank {counts.index(max(counts))} has {max(counts)}. Give all ranks "
                "one checkpoint folder, which every machine can read; or, where every machine has "
                "one of its own, start as many processes as the run began with"
            )
        lane.draws = counts[owner]


def run_on_ranks(
    ranks: Company,
    kernel: AEBKernel,
    lanes: Sequence[Lane],
    record: RunRecord,
    run_lane: Callable[[Lane], None],
    between: Callable[[], object],
) -> None:
    """
    Advances this rank's chains, waits for the other ranks, and gathers all draws on all ranks.

    :param lanes: one for every chain of the run.
    :param RunRecord record: of the run.
    :param run_lane: advances one to its end.
    :param between: raises where the run is to stop.
    :raises RankError: if another rank's chains were stopped; the draws are gathered before.
    """
    failure = _advance(ranks, kernel, lanes, record, run_lane)
    try:
        # A noted Ctrl-C has stopped the chains, and is not to stop the wait for the others too.
        ranks.wait(int if isinstance(failure, KeyboardInterrupt) else between)
        told = _gather(ranks, lanes, record, failure)
    except RuntimeError as error:
        if failure is not None:
            raise failure from error
        raise RankError(
            "another rank ended before its chains did (an error, killed, or out of memory). This "
            "rank has the draws of its own chains only; start the program again, and go on with "
            "MCMC.resume(path, model) where there is a checkpoint"
        ) from error
    if failure is not None:
        raise failure
    for rank, outcome in enumerate(told):
        if outcome.failure is not None:
            raise RankError(
                f"rank {rank} stopped: {outcome.failure}. The draws finished before are kept, on "
                "all ranks"
            )


def _advance(
    ranks: Company,
    kernel: AEBKernel,
    lanes: Sequence[Lane],
    record: RunRecord,
    run_lane: Callable[[Lane], None],
) -> BaseException | None:
    """Advances this rank's chains; what stopped it."""
    (base, *_) = ranks.tell(int(torch.randint(2**31, ())))
    before = global_random_state()
    try:
        for lane in ranks.own(lanes):
            if lane.draws < record.plan.draws:
                # Torch's own numbers too are another stream in every chain, wherever it runs.
                pyro.set_rng_seed((base + lane.numbers[0]) % 2**32)
                try:
                    run_lane(lane)
                finally:
                    _let_go(lane, kernel)
    except BaseException as error:
        return error
    finally:
        set_global_random_state(before)
    return None


def _let_go(lane: Lane, kernel: AEBKernel) -> None:
    """Leaves a chain as a saved state, with which its global random numbers come back."""
    if lane.chain is not None:
        data = lane.facts.get("observed_data", {})
        lane.put_back(lane.snapshot(kernel), f"the state of chain {lane.numbers[0]}")
        lane.facts["observed_data"] = data


def _gather(
    ranks: Company, lanes: Sequence[Lane], record: RunRecord, failure: BaseException | None
) -> list[Outcome]:
    """Brings what is known of every chain to all ranks, and its draws; every rank's outcome."""
    own = {lane.numbers[0]: lane for lane in ranks.own(lanes)}
    layout = {
        group: {name: (rows.shape[2:], rows.dtype) for name, rows in values.items()}
        for group, values in record.all_rows().items()
    }
    told: list[Outcome] = ranks.tell(
        Outcome(
            draws={number: lane.draws for number, lane in own.items()},
            facts={number: _to_tell(number, lane.facts) for number, lane in own.items()},
            layout=layout,
            failure=None if failure is None else f"{type(failure).__name__}: {failure}",
        )
    )
    for outcome in told:
        for number, count in outcome.draws.items():
            if number not in own:
                lanes[number].draws = count
                lanes[number].facts = outcome.facts[number]
    layout = next((outcome.layout for outcome in told if outcome.layout), {})
    rows = record.set_aside(layout)
    for number, lane in enumerate(lanes):
        kept = record.plan.kept_of(lane.draws)
        for group, names in layout.items():
            for name in names:
                ranks.send(rows[group][name][number, :kept], ranks.owner(number))
    return told


def _to_tell(number: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A chain's facts for other ranks: the data, the same in all chains, with the first's only."""
    return {
        name: _on_cpu(value)
        for name, value in facts.items()
        if name != "observed_data" or number == 0
    }


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _on_cpu(item) for name, item in value.items()}
    return value
