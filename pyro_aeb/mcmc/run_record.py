# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What a run keeps of its lanes: draws in a store, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.errors import CheckpointError
from pyro_aeb.mcmc.chain_group import Lane, Plan
from pyro_aeb.storage.checkpoint import Checkpoint, reading
from pyro_aeb.storage.memory import MemoryStore
from pyro_aeb.storage.recorder import Record, Store, StoredDraws
from pyro_aeb.storage.zarr_trace import TraceFile


class RunRecord:
    """
    The draws of a run and its checkpoints.

    :param int chains: how many.
    :param Plan plan: of the run.
    :param trace: path of a Zarr store, None to keep draws in memory.
    :param checkpoint: path of a folder for checkpoints, None for none.
    :raises FileExistsError: if there is something at one of the paths.
    """

    def __init__(
        self, chains: int, plan: Plan, trace: Path | None, checkpoint: Path | None
    ) -> None:
        for path in (trace, checkpoint):
            if path is not None and _is_taken(path):
                raise FileExistsError(
                    f"{path} exists already; go on with the run in a checkpoint by "
                    "MCMC.resume(path, model), or give another path"
                )
        self.plan = plan
        self.trace = trace
        self.writes = True  # checkpoints; False on ranks for which another one does
        self._chains = chains
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint)
        self._resumed = False
        self._store: Store | None = None

    @property
    def checkpoints(self) -> bool:
        """Whether checkpoints are written."""
        return self._checkpoint is not None and self.writes

    def rows(self, group: str) -> dict[str, Tensor]:
        """What is kept of a group, name to tensor of shape (chains, draws, ...)."""
        return self.all_rows().get(group, {})

    def all_rows(self) -> StoredDraws:
        """What is kept, by group and name; the tensors are the store's own."""
        return {} if self._store is None else self._store.read()

    def set_aside(self, layout: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> StoredDraws:
        """
        Rows in memory for draws that another process makes, where there are none yet.

        :param layout: group and name to shape and dtype of a draw.
        :returns: all rows.
        """
        if layout and not self.all_rows():
            store = MemoryStore(self._chains, self.plan.kept)
            empty = {
                group: {n: torch.zeros((1, 1, *shape), dtype=dt) for n, (shape, dt) in own.items()}
                for group, own in layout.items()
            }
            store.put(None, 0, empty)
            self._store = store
        return self.all_rows()

    def extend(self, plan: Plan) -> None:
        """Makes room for a longer run."""
        self.plan = plan
        if self._store is not None:
            self._store.grow(plan.kept)

    def open(self, lane: Lane, facts: dict[str, Any], describe: Callable[[], Any]) -> None:
        """
        Takes in what a lane's kernel says of it; at the first, makes the store.

        :param describe: gives what a checkpoint says of the run.
        """
        lane.facts = facts
        if self._store is None:
            self._store = self._new_store(facts)
        if self._checkpoint is not None and self.writes:
            self._checkpoint.describe(describe())

    def write(self, lane: Lane, record: Record) -> None:
        """Write the next draw of a lane."""
        assert self._store is not None
        row = lane.chains if isinstance(lane.chains, int) else None
        self._store.write(row, self.plan.kept_of(lane.draws), record)

    def flush(self) -> None:
        """Returns once all draws are where they stay."""
        if self._store is not None:
            self._store.flush()

    def save(self, lane: Lane, state: bytes) -> None:
        """
        Writes a checkpoint: where a lane stands, and its draws since the last time.

        :param bytes state: from :meth:`pyro_aeb.mcmc.chain_group.Lane.snapshot`.
        """
        if self._checkpoint is None or self._store is None:
            return
        kept, rows = self.plan.kept_of(lane.draws), None
        self._store.flush()
        if self.trace is None and kept > lane.saved:
            place = slice(lane.numbers[0], lane.numbers[-1] + 1)
            rows = {
                group: {n: v[place, lane.saved : kept] for n, v in values.items()}
                for group, values in self._store.read().items()
            }
        self._checkpoint.save(lane.numbers[0], state, rows, lane.saved)
        lane.saved = kept

    def put_back(self, checkpoint: Checkpoint, lanes: list[Lane]) -> None:
        """
        Puts lanes and draws where a checkpoint has them, and goes on writing to it.

        :raises CheckpointError: if it is damaged, or its trace is not there.
        """
        self._checkpoint, self._resumed = checkpoint, True
        for lane in lanes:
            first = lane.numbers[0]
            state = checkpoint.state(first)
            if state is None:
                continue
            lane.put_back(state, f"{checkpoint.path}/chain-{first}.pt")
            lane.saved = self.plan.kept_of(lane.draws)
            if self.trace is not None and lane.saved and not self.trace.exists():
                raise CheckpointError(
                    f"{self.trace} is missing, the trace with the draws of the run in "
                    f"{checkpoint.path}, expected where the run began; put it back there"
                )
            if self._store is None:
                self._store = self._new_store(lane.facts)
            if isinstance(self._store, MemoryStore):
                self._fill(self._store, checkpoint, lane)

    def _fill(self, store: MemoryStore, checkpoint: Checkpoint, lane: Lane) -> None:
        row, at = lane.chains if isinstance(lane.chains, int) else None, 0
        for rows in checkpoint.rows(lane.numbers[0], lane.saved):
            with reading(f"{checkpoint.path}/chain-{lane.numbers[0]}-draws-{at:09d}.pt"):
                at += store.put(row, at, rows)

    def _new_store(self, facts: Mapping[str, Any]) -> Store:
        if self.trace is None:
            return MemoryStore(self._chains, self.plan.kept)
        return TraceFile(
            self.trace,
            self._chains,
            self.plan.kept,
            dims=facts["dims"],
            roles=facts["roles"],
            attrs=facts["settings"],
            resume=self._resumed,
        )


class RunRecorder:
    """
    Records the draws of a lane in the store of its run; a
    :class:`~pyro_aeb.storage.recorder.Recorder`.
    """

    def __init__(self, run: RunRecord, lane: Lane) -> None:
        self._run = run
        self._lane = lane

    def add(self, record: Record) -> None:
        self._run.write(self._lane, record)

    def read(self, group: str) -> dict[str, Tensor]:
        lane, count = self._lane, self._run.plan.kept_of(self._lane.draws)
        if not count:
            return {}
        place = lane.chains if isinstance(lane.chains, int) else slice(None)
        return {name: rows[place, :count] for name, rows in self._run.rows(group).items()}

    def forget_draws(self) -> None:
        """Keep them: the run hands them out."""


def _is_taken(path: Path) -> bool:
    """Whether there is something at a path; what a killed process was about to write is nothing."""
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.endswith(".part") for entry in path.iterdir())
