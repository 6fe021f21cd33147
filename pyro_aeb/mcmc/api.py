# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro's MCMC with chains that step together, thinning, and runs that can go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_aeb.data.fingerprint import Fingerprint, check_same, fingerprint, words_about
from pyro_aeb.data.ranks import check_as_begun
from pyro_aeb.errors import NonFiniteError, RankError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.chain_group import Hook, Lane, Plan, advance, agree_to_stop, stage_of, take_turns
from pyro_aeb.mcmc.distributed import agree, company, run_on_ranks
from pyro_aeb.mcmc.interrupts import between_steps
from pyro_aeb.mcmc.kernel_options import kernel_from, recipe_of
from pyro_aeb.mcmc.parallel import Job, Receiver, run_in_processes
from pyro_aeb.mcmc.progress_bar import Bar
from pyro_aeb.mcmc.results import RunResults
from pyro_aeb.mcmc.run_record import RunRecord, RunRecorder
from pyro_aeb.model.side_effects import set_global_random_state
from pyro_aeb.posterior.data_parallel import ranks_of_data
from pyro_aeb.storage.checkpoint import Checkpoint, reading
from pyro_aeb.validation import choice, count

ChainMethod = Literal["sequential", "vectorized", "parallel", "distributed"]


_FACTS = (
    "kernel num_samples kept warmup_steps num_chains chain_method thinning every trace data"
).split()
"""What a checkpoint says of its run, at least."""


class MCMC(RunResults):
    """
    :class:`pyro.infer.MCMC` for an :class:`~pyro_aeb.AEBKernel`, with the same arguments and more::

        mcmc = aeb.MCMC(
            kernel, num_samples=1000, warmup_steps=200, num_chains=4,
            chain_method="vectorized", checkpoint="run.ckpt",
        )
        mcmc.run(X, y)
        mcmc.get_samples(group_by_chain=True)

    A run may be cut short by Ctrl-C or an error: every draw finished before is kept, and
    ``get_samples``, ``summary`` and :func:`~pyro_aeb.to_arviz` work on those. Ctrl-C waits for the
    step under way (a second one does not). Calling :meth:`run` again with the same arguments goes
    on: to the end of a run that was cut short, and from the end of a finished one with
    ``num_samples`` further draws of every chain, which are added to the earlier ones; there is no
    second warm-up. For another run make another object.

    Draws go into rows that are set aside once. The peak of memory is what is kept; Pyro's own MCMC
    takes three times that.

    :param AEBKernel kernel: the sampler. Chain i of a kernel with a seed has seed + i.
    :param int num_samples: draws of every chain that are kept.
    :param int warmup_steps: draws before them, which are not; by default ``num_samples``.
    :param initial_params: where to start, in unconstrained space, with a leading axis of chains if
        there are several.
    :param int num_chains: how many chains.
    :param hook_fn: called as ``hook_fn(kernel, draw, stage, i)`` after every draw.
    :param str mp_context: of chains in processes: ``"fork"``, ``"spawn"`` or ``"forkserver"``.
    :param bool disable_progbar: whether to show no progress bar.
    :param disable_validation: as in Pyro's.
    :param transforms: as in Pyro's: site name to a transform whose inverse is taken of the site's
        draws where they are handed out. The kernel's own need none, they are in the site's support.
    :param save_params: names of the sites to keep, as the kernel's ``save``.
    :param str chain_method: how several chains run. ``"sequential"``: one after the other.
        ``"vectorized"``: together in one process, by one vectorised run of the model a step, each
        with latents, pruning, noise and minibatches of its own; with a seed the same chains as one
        after the other up to rounding. The fastest for small models and on accelerators; the model
        must be one that :func:`torch.vmap` can run. ``"parallel"``: each in a process of its own.
        ``"distributed"``: spread over the processes that ``torchrun`` has started, on one machine
        or several, all of which have all draws at the end; see ``pyro_aeb.mcmc.distributed``.
        By default ``"parallel"`` where there are more processors than chains, as in Pyro, else
        ``"sequential"``.
    :param int thinning: of the kernel's draws after warm-up, keep every ``thinning``-th;
        ``num_samples`` counts those kept.
    :param trace: path of a Zarr store that the draws are written to as they come, in place of
        memory; see :func:`~pyro_aeb.open_trace`.
    :param checkpoint: path of a folder from which the run can go on after the process has ended;
        see :meth:`resume`.
    :param int every: draws, warm-up included, between two checkpoints. One is also written at the
        beginning and at the end, on Ctrl-C, and after an error other than a blow-up.
    :raises TypeError: if the kernel is not an AEBKernel, or an option is of the wrong kind.
    :raises ValueError: if an option makes no sense.
    :raises FileExistsError: if there is a run in the checkpoint's folder, or a file at ``trace``.
    """

    def __init__(
        self,
        kernel: AEBKernel,
        num_samples: int,
        warmup_steps: int | None = None,
        initial_params: Mapping[str, Tensor] | None = None,
        num_chains: int = 1,
        hook_fn: Hook | None = None,
        mp_context: str | None = None,
        disable_progbar: bool = False,
        disable_validation: bool | None = True,
        transforms: Mapping[str, Any] | None = None,
        save_params: Sequence[str] | None = None,
        *,
        chain_method: ChainMethod | None = None,
        thinning: int = 1,
        trace: str | os.PathLike[str] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int = 100,
    ) -> None:
        if not isinstance(kernel, AEBKernel):
            raise TypeError(
                f"kernel is a {type(kernel).__name__}, expected an AEBKernel; use pyro.infer.MCMC "
                "for other kernels"
            )
        warmup = num_samples if warmup_steps is None else warmup_steps
        counts = {"num_samples": num_samples, "num_chains": num_chains}
        for name, value in {**counts, "thinning": thinning, "every": every}.items():
            count(name, value)
        count("warmup_steps", warmup, least=0)
        paths = {"trace": trace, "checkpoint": checkpoint}
        check_run_options(initial_params, hook_fn, mp_context, paths)
        choice("chain_method", chain_method, ChainMethod, optional=True)
        if kernel.data_parallel and chain_method in ("parallel", "distributed"):
            raise ValueError(
                f"chain_method is {chain_method!r} and the kernel has data_parallel=True, by which "
                "all processes run every chain together; use one of the two"
            )
        if trace is not None and (kernel.data_parallel or chain_method == "distributed"):
            raise ValueError(
                f"trace is {str(trace)!r}, and a file of draws is written by one process only; use "
                "checkpoint= in a run of several"
            )
        super().__init__(
            kernel,
            num_samples,
            warmup,
            disable_progbar=disable_progbar,
            disable_validation=disable_validation,
            transforms=transforms,
            save_params=save_params,
        )
        self.num_chains, self.num_samples = int(num_chains), int(num_samples)
        self.thinning = int(thinning)
        self.chain_method: ChainMethod = chain_method or _usual_method(kernel, self.num_chains)
        if initial_params:
            if num_chains > 1:
                self._validate_initial_params(initial_params)
            else:
                initial_params = {n: v.unsqueeze(0) for n, v in initial_params.items()}
        self._initial_params = initial_params
        self._hook = hook_fn
        self._context = mp_context
        self._disable_progbar = disable_progbar
        self._quiet = False  # on all ranks but the first
        plan = Plan(int(warmup), int(num_samples), self.thinning, kernel.steps_per_draw)
        self._lanes = self._make_lanes()
        self._data: Fingerprint | None = None
        self._begun_on: int | None = None  # so many ranks that share a chain's data
        self._random: dict[str, Any] | None = None  # where global random numbers go on from
        self._every = int(every)
        self._record = RunRecord(
            self.num_chains,
            plan,
            None if trace is None else Path(trace),
            None if checkpoint is None else Path(checkpoint),
        )

    def __repr__(self) -> str:
        kept = [self._plan.kept_of(lane.draws) for lane in self._lanes]
        return (
            f"MCMC({self.kernel!r}, {self.num_chains} chains, {self.chain_method}: "
            f"{min(kept)} of {self._plan.kept} draws a chain)"
        )

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        model: Callable[..., Any],
        *,
        hook_fn: Hook | None = None,
        mp_context: str | None = None,
        disable_progbar: bool = False,
        disable_validation: bool | None = True,
        transforms: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> MCMC:
        """
        The run in a checkpoint, from where it stood; :meth:`run` with the same data goes on with
        it, and writes further checkpoints to the same folder::

            mcmc = aeb.MCMC.resume("run.ckpt", model)
            mcmc.run(X, y)

        The chains then go on bit for bit as they would have without the interruption, on a machine
        of the same kind with the same number of threads: weights, momentum, latents, masks,
        buffers, random numbers and the place in the data are put back. A loader is read up to its
        place; datasets whose transforms keep random numbers of their own (other than torch's,
        NumPy's and Python's global ones), and persistent workers, cannot be put back.

        :param path: the folder.
        :param model: the model of the run.
        :param transforms: those of the run, which the checkpoint cannot hold.
        :param options: options of :class:`~pyro_aeb.AEBKernel` that the checkpoint cannot hold,
            such as a schedule that is a function, or that shall change from here on; not ``seed``,
            ``steps_per_draw`` and ``save``, by which a run counts.
        :raises ValueError: if one of these is given, there are transforms of other sites than in
            the run, or there is no such way to start processes.
        :raises TypeError: if ``hook_fn`` is no function.
        :raises CheckpointError: if there is no run, it is damaged, or an option is missing.
        """
        check_run_options(None, hook_fn, mp_context, {})
        checkpoint = Checkpoint(path)
        facts = checkpoint.facts(*_FACTS)
        with reading(str(checkpoint.path)):
            transformed = [str(name) for name in facts.get("transforms", [])]
            begun_on = int(facts.get("ranks", 0)) or None
        _check_transforms(transformed, transforms)
        kernel = kernel_from(facts["kernel"], model, options)
        with reading(str(checkpoint.path)):
            mcmc = cls(
                kernel,
                facts["num_samples"],
                facts["warmup_steps"],
                num_chains=facts["num_chains"],
                hook_fn=hook_fn,
                mp_context=mp_context,
                disable_progbar=disable_progbar,
                disable_validation=disable_validation,
                transforms=transforms,
                chain_method=facts["chain_method"],
                thinning=facts["thinning"],
                every=facts["every"],
            )
            mcmc._data = [(name, word) for name, word in facts["data"]]
            mcmc._begun_on = begun_on
            mcmc._record.extend(replace(mcmc._plan, kept=facts["kept"]))
            mcmc._record.trace = None if facts["trace"] is None else Path(facts["trace"])
        mcmc._record.put_back(checkpoint, mcmc._lanes)
        if mcmc.chain_method in ("sequential", "vectorized"):
            mcmc._random = take_turns(mcmc._lanes, mcmc._plan, mcmc.num_samples)
        return mcmc

    @poutine.block
    def run(self, *args: Any, **kwargs: Any) -> None:
        """
        Runs the chains, or goes on with them; see the class.

        :param args: the model's arguments; or a DataLoader, alone.
        :param kwargs: its keyword arguments.
        :raises ModelError: if the model or the data cannot be sampled.
        :raises NonFiniteError: if a chain blows up; the draws before are kept.
        :raises ValueError: if an earlier call had other arguments, or a run whose ranks share the
            data began on another number of them. Chains spread over ranks go on with any number.
        """
        args = tuple(arg.detach() if torch.is_tensor(arg) else arg for arg in args)
        data = fingerprint(args, kwargs)
        if self._data is not None:
            check_same(self._data, data)
        self._args, self._kwargs, self._data = args, kwargs, data
        if self._random is not None:
            set_global_random_state(self._random)
            self._random = None
        validation: AbstractContextManager[Any] = nullcontext()
        if self.disable_validation is not None:
            validation = pyro.validation_enabled(not self.disable_validation)
        with validation, between_steps() as between:
            if self.chain_method == "distributed":
                self._run_on_ranks(args, kwargs, between)
                return
            self._extend_if_finished()
            ranks = ranks_of_data(self.kernel.data_parallel)
            check_as_begun(ranks, self._begun_on)
            self._quiet, self._record.writes = ranks.rank > 0, ranks.rank == 0
            if self.chain_method == "parallel" and self.num_chains > 1:
                self._run_in_processes(args, kwargs, between)
            else:
                for lane in self._lanes:
                    if lane.draws < self._plan.draws:
                        self._run_lane(lane, args, kwargs, between)

    # -- a run

    def _make_lanes(self) -> list[Lane]:
        numbers = range(self.num_chains)
        if self.chain_method == "vectorized" and self.num_chains > 1:
            return [Lane(tuple(numbers))]
        return [Lane(number) for number in numbers]

    def _first_params(self, lane: Lane) -> Mapping[str, Tensor] | None:
        """The user's starting point of a lane that has not begun."""
        given = self._initial_params
        if given is None or lane.draws:
            return None
        together = isinstance(lane.chains, tuple)
        return given if together else {n: v[lane.numbers[0]] for n, v in given.items()}

    def _run_lane(
        self,
        lane: Lane,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        between: Callable[[], None],
    ) -> None:
        """Advances a lane in this process to its end."""
        kernel, plan = self.kernel, self._plan
        given = self._first_params(lane)
        if lane.chain is None and given is not None:
            kernel.initial_params = given
        recorder = RunRecorder(self._record, lane)
        chain = lane.start(kernel, plan, args, kwargs, recorder)
        ranks = ranks_of_data(kernel.data_parallel)
        agree_to_stop(ranks, chain, int)
        self._record.open(lane, kernel.facts(), self._description)
        if self._record.checkpoints and chain.step == 0:  # what it starts from is kept at once
            self._record.save(lane, lane.snapshot(kernel))
        label = lane.chains if isinstance(lane.chains, int) and len(self._lanes) > 1 else None
        name = "" if label is None else f" [{label}]"
        bar = Bar(plan, lane.draws, name, self._disable_progbar or self._quiet)

        def after_draw(draw: Mapping[str, Tensor]) -> None:
            lane.draws = chain.draws
            stop = agree_to_stop(ranks, chain, between)
            bar.update(kernel.logging)
            if self._hook is not None:
                self._hook(kernel, draw, *stage_of(chain, plan, label))
            if self._record.checkpoints and chain.draws % self._every == 0:
                self._record.save(lane, lane.snapshot(kernel))
            if stop:
                raise KeyboardInterrupt

        sound = True
        try:
            advance(kernel, plan, after_draw, int if ranks.world > 1 else between)
        except (NonFiniteError, RankError):
            sound = False
            raise
        finally:
            bar.close()
            lane.facts = kernel.facts()
            lane.rest()
            sound = sound and not chain.torn
            if sound and self._record.checkpoints:  # else the one before is better
                self._record.save(lane, lane.snapshot(kernel))
            self._record.flush()

    def _extend_if_finished(self) -> None:
        if all(lane.draws >= self._plan.draws for lane in self._lanes):
            longer = replace(self._plan, kept=self._plan.kept + self.num_samples)
            self._record.extend(longer)

    def _run_on_ranks(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], between: Callable[[], None]
    ) -> None:
        """Advances this rank's chains, and gathers those of all ranks."""
        with company() as ranks:
            same = {"the number of chains": self.num_chains, "the plan of draws": self._plan}
            agree(ranks, self._lanes, {**same, **words_about(args, kwargs)})
            self._extend_if_finished()
            self._quiet = ranks.ranks.rank > 0

            def run_lane(lane: Lane) -> None:
                self._run_lane(lane, args, kwargs, between)

            run_on_ranks(ranks, self.kernel, self._lanes, self._record, run_lane, between)

    def _run_in_processes(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], between: Callable[[], None]
    ) -> None:
        """Advances every chain in a process of its own."""
        base = int(torch.randint(2**31, ()))
        jobs = [
            Job(
                kernel=self.kernel,
                plan=self._plan,
                lane=replace(lane, facts={}),
                initial_params=self._first_params(lane),
                args=args,
                kwargs=kwargs,
                hook=self._hook,
                every=self._every if self._record.checkpoints else self._plan.draws,
                random_seed=(base + lane.numbers[0]) % 2**32,
                threads=max(torch.get_num_threads() // self.num_chains, 1),
                disable_validation=self.disable_validation,
            )
            for lane in self._lanes
            if lane.draws < self._plan.draws
        ]
        receiver = Receiver(
            self._record, self._lanes, self._description, bool(self._disable_progbar)
        )
        try:
            run_in_processes(jobs, self._context, receiver, between)
        except NonFiniteError as error:
            error.draws = self.get_samples() if any(self._counts()) else {}
            raise

    def _description(self) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        plan, trace = self._plan, self._record.trace
        return {
            "kernel": recipe_of(self.kernel),
            "num_samples": self.num_samples,
            "kept": plan.kept,
            "warmup_steps": plan.warmup,
            "num_chains": self.num_chains,
            "chain_method": self.chain_method,
            "thinning": self.thinning,
            "every": self._every,
            "trace": None if trace is None else str(trace),
            "data": self._data,
            "transforms": sorted(self.transforms or {}),
            "ranks": ranks_of_data(self.kernel.data_parallel).world,
        }


def _usual_method(kernel: AEBKernel, chains: int) -> ChainMethod:
    if kernel.data_parallel:
        return "sequential"
    return "parallel" if 1 < chains < torch.multiprocessing.cpu_count() else "sequential"


def _check_transforms(begun: Sequence[str], given: Mapping[str, Any] | None) -> None:
    if sorted(given or {}) != begun:
        raise ValueError(
            f"there are transforms of {sorted(given or {})}, and the run began with those of "
            f"{begun}, which a checkpoint cannot hold; give the same, MCMC.resume(path, model, "
            "transforms=...)"
        )


def check_run_options(
    initial_params: Any, hook_fn: Any, mp_context: Any, paths: Mapping[str, Any]
) -> None:
    """
    Checks options of a run.

    :param paths: those that are paths, by name.
    :raises TypeError: if an option is of the wrong kind.
    :raises ValueError: if there is no such way to start processes.
    """
    if initial_params is not None and not (
        isinstance(initial_params, Mapping)
        and all(isinstance(value, Tensor) for value in initial_params.values())
    ):
        raise TypeError(
            f"initial_params is {initial_params!r}, expected site names to tensors, in "
            "unconstrained space"
        )
    if hook_fn is not None and not callable(hook_fn):
        raise TypeError(
            f"hook_fn is {hook_fn!r}, expected a function hook_fn(kernel, draw, stage, i)"
        )
    choice("mp_context", mp_context, Literal["fork", "spawn", "forkserver"], optional=True)
    for name, path in paths.items():
        if path is not None and not (isinstance(path, (str, os.PathLike)) and os.fspath(path)):
            raise TypeError(f"{name} is {path!r}, expected a path")
