# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The chains of a run: how they are advanced, and when they have made enough draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.data.fingerprint import Fingerprint, describe_tensors
from pyro_aeb.errors import NonFiniteError, inform
from pyro_aeb.mcmc.chain_group import ChainGroup, Hook
from pyro_aeb.mcmc.distributed import process_group, run_on_ranks, synchronize
from pyro_aeb.mcmc.goal import Goal, Smallest, TimeLimit
from pyro_aeb.mcmc.kernel_options import options_of
from pyro_aeb.mcmc.parallel import Job, Receiver, run_in_processes
from pyro_aeb.mcmc.results import RunResults
from pyro_aeb.mcmc.run_options import ChainMethod
from pyro_aeb.mcmc.run_record import RunRecorder, RunSink
from pyro_aeb.mcmc.together import can_step_together
from pyro_aeb.posterior.data_parallel import ranks_of_data


class Runner(RunResults):
    """
    The chains of a run, which advance in turn, together, in processes or on ranks, to a number of
    draws or to a goal.
    """

    chain_method: ChainMethod
    stopped_by: str | None
    thinning: int
    _arguments: Arguments | None
    _compares_contents: bool
    _context: str | None
    _data: Fingerprint | None
    _disable_progbar: bool
    _every: int
    _goal: Goal | None
    _hook: Hook | None
    _initial_params: Mapping[str, Tensor] | None
    _round: int
    _shows_progress: bool
    _tries_vectorized: bool

    def _choose_method(self, arguments: Arguments) -> None:
        """Let the chains of a new run step together if they can, and say so."""
        self._tries_vectorized = False
        if can_step_together(self.kernel, self.num_chains, arguments, self._initial_params):
            self.chain_method = "vectorized"
            self._groups = self._make_groups()
            if not self._disable_progbar:
                inform(
                    f"The {self.num_chains} chains step together (chain_method='vectorized'); "
                    "'sequential' and 'parallel' run them apart."
                )

    def _make_groups(self) -> list[ChainGroup]:
        numbers = tuple(range(self.num_chains))
        if self.num_chains == 1 or self.chain_method == "vectorized":
            return [ChainGroup(numbers)]
        return [ChainGroup((number,), name=f" [{number}]") for number in numbers]

    def _initial_params_of(self, group: ChainGroup) -> Mapping[str, Tensor] | None:
        """Return the user's starting point of a group that has not started."""
        params = self._initial_params
        if params is None or group.draws:
            return None
        return params if group.vectorized else {n: v[group.first] for n, v in params.items()}

    def _run_group(self, group: ChainGroup, between: Callable[[], None]) -> None:
        """Make the remaining draws of a group in this process."""
        assert self._arguments is not None
        kernel, record = self.kernel, self._record
        params = self._initial_params_of(group)
        if group.chain is None and params is not None:
            kernel.initial_params = params
        group.start(kernel, self._plan, *self._arguments, RunRecorder(record, group))
        disable_progbar = self._disable_progbar or not self._shows_progress
        sink = RunSink(record, group, self._description, disable_progbar)
        group.run(kernel, self._plan, sink, between, self._hook, self._every)

    def _run_chains(self, between: Callable[[], None]) -> None:
        """Make the remaining draws of all chains."""
        if self.chain_method == "parallel" and self.num_chains > 1:
            self._run_in_processes(between)
            return
        for group in self._groups:
            if group.draws < self._plan.draws:
                self._run_group(group, between)

    def _run_to(self, goal: Goal, between: Callable[[], None]) -> None:
        """Run the chains to a goal, or to a limit, and say which."""
        limit = self.num_samples * -(-self._plan.kept // self.num_samples)
        if self._is_finished() and self._plan.kept == limit:
            limit += self.num_samples
        watch, self.stopped_by = goal.watch(between), None
        try:
            while not self._is_finished() or not self._is_enough(goal, limit):
                self._run_chains(watch)
        except TimeLimit:
            reason = f"max_seconds={goal.seconds:g} have passed"
            if any(self._counts()):
                self._stop(reason, goal, self._smallest(goal))
            else:
                self._say(f"{reason} in warm-up: there are no draws; run() again continues")

    def _is_enough(self, goal: Goal, limit: int) -> bool:
        """Return whether a run has reached its goal or its limit; else make its plan longer."""
        kept, found = self._plan.kept, self._smallest(goal)
        self._record.reached = f", ESS {found.size:.0f} of {goal.ess:g}"
        if found.size >= goal.ess:
            self._stop(f"ess={goal.ess:g} is reached", goal, found)
        elif kept >= limit:
            self._stop(f"the limit of {limit:,} draws of every chain is reached", goal, found)
        else:
            self._extend(goal.next_length(kept, found.size, limit) - kept)
        return self.stopped_by is not None

    def _smallest(self, goal: Goal) -> Smallest:
        """Return the smallest effective sample size so far, of a run that has draws."""
        metadata = self._group_of(self._table()[0][0]).metadata
        return goal.smallest(self.get_samples(group_by_chain=True), metadata)

    def _stop(self, reason: str, goal: Goal, found: Smallest) -> None:
        """Say why a run has stopped."""
        self._say(f"{reason}: {found} of {goal.ess:g}, after {sum(self._counts()):,} draws")

    def _say(self, reason: str) -> None:
        self.stopped_by = reason
        if self._shows_progress:
            inform(f"Stopped, {reason}.")

    def _is_finished(self) -> bool:
        return all(group.draws >= self._plan.draws for group in self._groups)

    def _extend(self, draws: int) -> None:
        self._round = draws
        self._record.extend(replace(self._plan, kept=self._plan.kept + draws))

    def _extend_if_finished(self) -> None:
        if self._is_finished():
            self._extend(self.num_samples)

    def _run_on_ranks(self, between: Callable[[], None]) -> None:
        """Run this rank's chains, and gather those of all ranks."""
        assert self._arguments is not None
        with process_group() as ranks:
            settings = {"the number of chains": self.num_chains, "the plan of draws": self._plan}
            synchronize(ranks, self._groups, {**settings, **describe_tensors(*self._arguments)})
            self._extend_if_finished()
            self._shows_progress = ranks.ranks.rank == 0
            run_group = partial(self._run_group, between=between)
            run_on_ranks(ranks, self.kernel, self._groups, self._record, run_group, between)

    def _run_in_processes(self, between: Callable[[], None]) -> None:
        """Run every chain in a process of its own."""
        assert self._arguments is not None
        base = int(torch.randint(2**31, ()))
        groups = [group for group in self._groups if group.draws < self._plan.draws]
        jobs = [
            Job(
                kernel=self.kernel,
                plan=self._plan,
                group=replace(group, saved=None, metadata={}),
                state=group.saved_bytes(),
                initial_params=self._initial_params_of(group),
                arguments=self._arguments,
                hook=self._hook,
                every=self._every if self._record.checkpoint is not None else self._plan.draws,
                random_seed=(base + group.first) % 2**32,
                threads=max(torch.get_num_threads() // self.num_chains, 1),
                disable_validation=self.disable_validation,
            )
            for group in groups
        ]
        options = self._description, bool(self._disable_progbar)
        receivers = [Receiver(self._record, group, *options, group.first) for group in groups]
        try:
            run_in_processes(jobs, receivers, self._context, between)
        except NonFiniteError as error:
            error.draws = self.get_samples() if any(self._counts()) else {}
            raise

    def _description(self) -> dict[str, Any]:
        """Return the description of the run that a checkpoint holds."""
        plan, trace = self._plan, self._record.trace
        return {
            "kernel": options_of(self.kernel),
            "num_samples": self.num_samples,
            "kept": plan.kept,
            "round": self._round,
            "goal": {} if self._goal is None else self._goal.options(),
            "warmup_steps": plan.warmup,
            "num_chains": self.num_chains,
            "chain_method": self.chain_method,
            "thinning": self.thinning,
            "every": self._every,
            "trace": None if trace is None else str(trace),
            "data": self._data,
            "contents": self._compares_contents,
            "transforms": sorted(self.transforms or {}),
            "ranks": ranks_of_data(self.kernel.data_parallel).world,
        }
