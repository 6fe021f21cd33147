# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The draws and checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.errors import CheckpointError
from pyro_aeb.mcmc.chain_group import ChainGroup, Plan
from pyro_aeb.mcmc.goal import Goal
from pyro_aeb.mcmc.progress_bar import Bar
from pyro_aeb.storage.checkpoint import Checkpoint, check_contents
from pyro_aeb.storage.memory import MemoryStore
from pyro_aeb.storage.recorder import Record, Recorder, StoredDraws, map_draws
from pyro_aeb.storage.zarr_trace import TraceFile


class RunRecord:
    """
    Keeps the draws of a run, and writes its checkpoints.

    :param int chains: number of chains.
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
                    f"{path} exists already; resume the run in a checkpoint by "
                    "MCMC.resume(path, model), or give another path"
                )
        self.plan = plan
        self.trace = trace
        self.is_writer = True  # False on ranks whose checkpoints another rank writes
        self.goal: Goal | None = None
        self.reached = ""  # what progress bars say of the goal
        self._chains = chains
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint)
        self._resumed = False
        self._store: MemoryStore | TraceFile | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that this process writes."""
        return self._checkpoint if self.is_writer else None

    def read(self) -> StoredDraws:
        """Return all draws; the tensors are the store's own."""
        return {} if self._store is None else self._store.read()

    def allocate(self, layout: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> StoredDraws:
        """Return all draws, with memory for those of other ranks, whose draws have a layout."""
        if layout and not self.read():
            store = MemoryStore(self._chains, self.plan.kept)
            draw = map_draws(lambda form: torch.zeros((1, 1, *form[0]), dtype=form[1]), layout)
            store.restore(None, 0, draw)
            self._store = store
        return self.read()

    def extend(self, plan: Plan) -> None:
        """Make room for a longer plan."""
        self.plan = plan
        if self._store is not None:
            self._store.grow(plan.kept)

    def open(self, metadata: Mapping[str, Any], describe: Callable[[], Any]) -> None:
        """
        Prepare for the draws of a chain.

        :param metadata: of the chain, from :meth:`pyro_aeb.kernel.aeb_kernel.AEBKernel.metadata`.
        :param describe: returns the description of the run that a checkpoint holds.
        :raises ModelError: if a site that the goal of the run names is not one of its draws.
        """
        if self.goal is not None:
            self.goal.chosen(metadata)
        if self._store is None:
            self._store = self._make_store(metadata)
        if self.checkpoint is not None:
            self.checkpoint.describe(describe())

    def write(self, row: int | None, number: int, record: Record) -> None:
        """
        Write a draw.

        :param row: number of its chain; None for a record of all chains.
        :param int number: of the kept draws, counted from 0.
        """
        assert self._store is not None
        self._store.write(row, number, record)

    def flush(self) -> None:
        """Write all draws to where they outlive the process, if the store is a file."""
        if self._store is not None:
            self._store.flush()

    def save(self, group: ChainGroup, state: bytes) -> None:
        """
        Write a checkpoint: the state of a group, and its draws since the last one.

        :param bytes state: from :meth:`pyro_aeb.mcmc.chain_group.ChainGroup.snapshot`.
        """
        if self.checkpoint is None or self._store is None:
            return
        kept, draws = self.plan.kept_of(group.draws), None
        self._store.flush()
        if self.trace is None and kept > group.saved_draws:
            place = slice(group.first, group.numbers[-1] + 1), slice(group.saved_draws, kept)
            draws = map_draws(lambda values: values[place], self._store.read())
        self.checkpoint.save(group.first, state, draws, group.saved_draws)
        group.saved_draws = kept

    def restore(self, checkpoint: Checkpoint, groups: Sequence[ChainGroup]) -> None:
        """
        Restore groups and draws from a checkpoint, and write further ones to it.

        :raises CheckpointError: if it is damaged, or its trace is missing.
        """
        self._checkpoint, self._resumed = checkpoint, True
        for group in groups:
            state = checkpoint.state(group.first)
            if state is None:
                continue
            group.restore(state, f"{checkpoint.path}/chain-{group.first}.pt")
            group.saved_draws = self.plan.kept_of(group.draws)
            if self.trace is not None and group.saved_draws and not self.trace.exists():
                raise CheckpointError(
                    f"{self.trace} is missing, the trace with the draws of the run in "
                    f"{checkpoint.path}, expected where the run made it; move it back there"
                )
            if self._store is None:
                self._store = self._make_store(group.metadata)
            if isinstance(self._store, MemoryStore):
                self._restore_draws(self._store, checkpoint, group)

    def _restore_draws(self, store: MemoryStore, checkpoint: Checkpoint, group: ChainGroup) -> None:
        count = 0
        for draws in checkpoint.draws(group.first, group.saved_draws):
            with check_contents(f"{checkpoint.path}/chain-{group.first}-draws-{count:09d}.pt"):
                count += store.restore(group.row, count, draws)

    def _steps(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the steps of warm-up and those between draws, unless warm-up chooses them."""
        plan = self.plan
        if settings["steps_per_draw"] == "auto":
            return {}
        return {
            "warmup_steps": str(plan.steps * plan.warmup),
            "steps_between_draws": str(plan.steps * plan.thinning),
        }

    def _make_store(self, metadata: Mapping[str, Any]) -> MemoryStore | TraceFile:
        if self.trace is None:
            return MemoryStore(self._chains, self.plan.kept)
        return TraceFile(
            self.trace,
            self._chains,
            self.plan.kept,
            dims=metadata["dims"],
            roles=metadata["roles"],
            attrs={**metadata["settings"], **self._steps(metadata["settings"])},
            resume=self._resumed,
            summaries=metadata.get("summaries", {}),
        )


class RunRecorder(Recorder):
    """
    Records the draws of a chain group in the record of its run. It does not refer to the group,
    whose chain refers to it: a cycle of references would delay the release of memory.
    """

    def __init__(self, run: RunRecord, group: ChainGroup) -> None:
        self._run = run
        self._row = group.row
        self._count = run.plan.kept_of(group.draws)

    def add(self, number: int, record: Record) -> None:
        self._run.write(self._row, number, record)
        self._count = number + 1

    def read(self, group: str) -> dict[str, Tensor]:
        if not self._count:
            return {}
        place = slice(None) if self._row is None else self._row, slice(self._count)
        return {name: values[place] for name, values in self._run.read().get(group, {}).items()}


class RunSink:
    """
    Saves the states of a group in the record of its run, and shows a progress bar; a
    :class:`~pyro_aeb.mcmc.chain_group.Sink`.

    :param describe: returns the description of the run that a checkpoint holds.
    :param bool disable_progbar: whether to show no progress bar.
    :param int position: line of the bar, where several are shown.
    """

    def __init__(
        self,
        run: RunRecord,
        group: ChainGroup,
        describe: Callable[[], Any],
        disable_progbar: bool,
        position: int | None = None,
    ) -> None:
        self.run, self.group = run, group
        self._describe = describe
        self._bar_options = disable_progbar, position
        self._bar: Bar | None = None  # once the number of earlier draws is known

    def start(self, metadata: dict[str, Any]) -> None:
        self.group.metadata = metadata
        self.run.open(metadata, self._describe)
        name, is_last = f"{self.group.name}{self.run.reached}", self.run.goal is None
        self._bar = Bar(self.run.plan, self.group.draws, name, *self._bar_options, leave=is_last)

    def draw(self, figures: Callable[[], Mapping[str, str]]) -> None:
        assert self._bar is not None
        self._bar.update(figures)

    def save(self, snapshot: Callable[[], bytes]) -> None:
        if self.run.checkpoint is not None:
            self.run.save(self.group, snapshot())

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self.run.flush()


def _is_taken(path: Path) -> bool:
    """Return whether there is something at a path, other than partial files of a killed process."""
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.endswith(".part") for entry in path.iterdir())
