# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro's MCMC with vectorized chains, thinning, traces and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.data.fingerprint import (
    Fingerprint,
    check_same,
    fingerprint,
    holds_objects,
    warn_of_opaque,
)
from pyro_aeb.data.ranks import check_world
from pyro_aeb.errors import inform
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.kernel.chain import Chain
from pyro_aeb.kernel.html_table import html_table
from pyro_aeb.kernel.options import option_rows
from pyro_aeb.mcmc.chain_group import Hook, Plan, share_random_stream
from pyro_aeb.mcmc.goal import make_goal
from pyro_aeb.mcmc.interrupts import between_steps
from pyro_aeb.mcmc.kernel_options import restore_kernel
from pyro_aeb.mcmc.run_options import (
    ChainMethod,
    check_ranks,
    check_run_options,
    default_method,
    run_lengths,
)
from pyro_aeb.mcmc.run_record import RunRecord
from pyro_aeb.mcmc.runner import Runner
from pyro_aeb.mcmc.transforms import check_same_transforms, check_transforms
from pyro_aeb.model.side_effects import preserve_random_state, set_global_random_state
from pyro_aeb.posterior.data_parallel import ranks_of_data
from pyro_aeb.storage.checkpoint import Checkpoint, check_contents
from pyro_aeb.validation import choice, count

_STORED = ("num_samples", "warmup_steps", "num_chains", "chain_method", "thinning", "every")
"""Options in the description of a run in a checkpoint."""


class MCMC(Runner):
    """
    :class:`pyro.infer.MCMC` for an :class:`~pyro_aeb.AEBKernel`, with the same arguments and more::

        mcmc = aeb.MCMC(
            kernel, num_samples=1000, warmup_steps=200, num_chains=4,
            chain_method="vectorized", checkpoint="run.ckpt",
        )
        mcmc.run(X, y)
        mcmc.get_samples(group_by_chain=True)

    If a run is interrupted by Ctrl-C or an error, all finished draws are kept for ``get_samples``,
    ``summary`` and :func:`~pyro_aeb.to_arviz`. Ctrl-C takes effect after the current step (a second
    one at once). Calling :meth:`run` again with the same arguments continues an interrupted run, or
    extends a finished one by ``num_samples`` draws of every chain, without a second warm-up. For
    another run make another object.

    Memory for the draws is allocated once, and is the peak of what is used; Pyro's own MCMC uses
    three times that.

    :param AEBKernel kernel: the sampler. Chain i of a kernel with a seed has seed + i.
    :param int num_samples: draws of every chain that are kept; with ``ess`` the most of them, by
        default 10,000.
    :param int warmup_steps: draws of warm-up, which are not; by default ``num_samples``, with
        ``ess`` at most 1,000.
    :param initial_params: starting point in unconstrained space, with a leading axis of chains if
        there are several.
    :param int num_chains: number of chains.
    :param hook_fn: called as ``hook_fn(kernel, draw, stage, i)`` after every draw.
    :param str mp_context: of worker processes: ``"fork"``, ``"spawn"`` or ``"forkserver"``.
    :param bool disable_progbar: whether to show no progress bar.
    :param disable_validation: as in Pyro's.
    :param transforms: as in Pyro's: site name to a transform, whose inverse is applied to the draws
        that are returned. The kernel's draws need none, they are in the support of the site; those
        of ``initialize_model`` are refused.
    :param save_params: names of the sites to keep, as the kernel's ``save``.
    :param str chain_method: how several chains run. ``"sequential"``: one after the other.
        ``"vectorized"``: together in one process, with one vectorized call of the model a step;
        with a seed they are the sequential chains up to rounding. The fastest for small models and
        on accelerators; needs a model that :func:`torch.vmap` can run. ``"parallel"``: each in a
        process of its own. ``"distributed"``: over the processes that ``torchrun`` has started, on
        one machine or several, all of which have all draws at the end; see
        ``pyro_aeb.mcmc.distributed``. By default ``"vectorized"`` where the first call of
        :meth:`run` finds that the model can, which it says; it does not try with a loader, over
        100,000 weights, a ``hook_fn`` or an ``mp_context``. Then, as in Pyro, ``"parallel"`` if
        there are more processors than chains, else ``"sequential"``.
    :param int thinning: of the kernel's draws after warm-up, keep every ``thinning``-th;
        ``num_samples`` counts those kept.
    :param trace: path of a Zarr store for the draws, in place of memory; see
        :func:`~pyro_aeb.open_trace`.
    :param checkpoint: path of a folder from which the run can be resumed after the process has
        ended; see :meth:`resume`.
    :param int every: draws, warm-up included, between two checkpoints. One is also written at the
        start and at the end, on Ctrl-C, and after an error other than divergence.
    :param float ess: the run stops when the smallest bulk effective sample size of all chains
        together reaches it, or at ``num_samples`` or ``max_seconds``, and :attr:`stopped_by` says
        which. It is computed after 100 draws or more, and again after as many as should be enough:
        at most twice as many as before. Not for ``"distributed"`` chains and ``data_parallel``.
    :param ess_sites: names of the sites that need it; by default all that are sampled.
    :param float max_seconds: of a call of :meth:`run`, warm-up included; only with ``ess``.
    :raises TypeError: if the kernel is not an AEBKernel, or an option is of the wrong kind.
    :raises ValueError: if an option is invalid, or two exclude each other.
    :raises FileExistsError: if there is a run in the checkpoint's folder, or a file at ``trace``.
    """

    _data_after: Fingerprint | None = None  # of objects, which a run may change
    _compares_contents = True  # False for a run of version 0.1

    stopped_by: str | None = None
    """Why a run with ``ess`` has stopped; None while it has not."""

    def __init__(
        self,
        kernel: AEBKernel,
        num_samples: int | None = None,
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
        ess: float | None = None,
        ess_sites: Sequence[str] | None = None,
        max_seconds: float | None = None,
    ) -> None:
        if not isinstance(kernel, AEBKernel):
            raise TypeError(
                f"kernel is a {type(kernel).__name__}, expected an AEBKernel; use pyro.infer.MCMC "
                "for other kernels"
            )
        goal, chains = make_goal(ess, ess_sites, max_seconds), count("num_chains", num_chains)
        samples, warmup = run_lengths(goal, num_samples, warmup_steps)
        self.thinning, self._every = count("thinning", thinning), count("every", every)
        kept = samples if goal is None else goal.first_length(chains, samples)
        plan = Plan(warmup, kept, self.thinning, kernel.given_steps)
        check_run_options(initial_params, hook_fn, mp_context, trace=trace, checkpoint=checkpoint)
        check_transforms(transforms)
        choice("chain_method", chain_method, ChainMethod, optional=True)
        check_ranks(kernel, chain_method, trace, goal)
        super().__init__(
            kernel,
            samples,
            warmup,
            disable_progbar=disable_progbar,
            disable_validation=disable_validation,
            transforms=transforms,
            save_params=save_params,
        )
        self.num_chains, self._goal, self._round = chains, goal, kept
        self.chain_method: ChainMethod = chain_method or default_method(kernel, chains)
        apart = chains == 1 or kernel.data_parallel
        self._tries_vectorized = not (apart or chain_method or hook_fn or mp_context)
        if initial_params:
            if chains > 1:
                self._validate_initial_params(initial_params)
            else:
                initial_params = {n: v.unsqueeze(0) for n, v in initial_params.items()}
        self._initial_params = initial_params
        self._hook = hook_fn
        self._context = mp_context
        self._disable_progbar = disable_progbar
        self._shows_progress = True  # False on all ranks but the first
        self._groups = self._make_groups()
        self._arguments: Arguments | None = None  # of the model
        self._data: Fingerprint | None = None  # when the run began
        self._world: int | None = None  # number of ranks that share a chain's data
        self._random: dict[str, Any] | None = None  # global random state of a resumed run
        paths = (None if path is None else Path(path) for path in (trace, checkpoint))
        self._record = RunRecord(chains, plan, *paths)
        self._record.goal = goal

    def __repr__(self) -> str:
        return (
            f"MCMC({self.kernel!r}, {self.num_chains} chains, {self.chain_method}: "
            f"{min(self._counts())} of {self._plan.kept} draws a chain)"
        )

    def _repr_html_(self) -> str:
        """Return a table of the run and its kernel's options, for notebooks."""
        counts, plan = self._counts(), self._plan
        done = f"{min(counts)} of {plan.kept} draws a chain"
        rows = [("chain_method", self.chain_method), ("warmup_steps", str(plan.warmup))]
        rows += [("thinning", str(self.thinning))] if self.thinning > 1 else []
        rows += [("stopped_by", self.stopped_by)] if self.stopped_by else []
        chains = f"{self.num_chains} chain{'s' if self.num_chains > 1 else ''}"
        return html_table(f"MCMC, {chains}: {done}", rows + option_rows(self.kernel))

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
        Restore the run in a checkpoint; :meth:`run` with the same data continues it, and writes
        further checkpoints to the same folder::

            mcmc = aeb.MCMC.resume("run.ckpt", model)
            mcmc.run(X, y)

        The draws are bit for bit those of a run without interruption, on a machine of the same kind
        with the same number of threads: weights, momentum, latents, masks, buffers, random numbers
        and the place in the data are restored. A loader is read up to its place. What cannot be
        restored are random numbers of a dataset other than torch's, NumPy's and Python's global
        ones, and persistent workers.

        :param path: of the folder.
        :param model: of the run.
        :param transforms: those of the run, which a checkpoint cannot hold.
        :param options: options of :class:`~pyro_aeb.AEBKernel` that a checkpoint cannot hold, such
            as a schedule that is a function, or that are to change; not ``seed``,
            ``steps_per_draw`` and ``save``, by which a run counts.
        :raises ValueError: if one of these is given, transforms are of other sites than those of
            the run, or ``mp_context`` is unknown.
        :raises TypeError: if ``hook_fn`` is no function.
        :raises CheckpointError: if there is no run, it is damaged, or an option is missing.
        """
        check_run_options(None, hook_fn, mp_context)
        checkpoint = Checkpoint(path)
        run = checkpoint.read_description(*_STORED, "kernel", "kept", "trace", "data")
        with check_contents(str(checkpoint.path)):
            transformed = [str(name) for name in run.get("transforms", [])]
            world = int(run.get("ranks", 0)) or None
            goal = dict(run.get("goal", {}))
            contents = bool(run.get("contents", False))
        check_same_transforms(transformed, transforms)
        kernel = restore_kernel(run["kernel"], model, options)
        with check_contents(str(checkpoint.path)):
            mcmc = cls(
                kernel,
                hook_fn=hook_fn,
                mp_context=mp_context,
                disable_progbar=disable_progbar,
                disable_validation=disable_validation,
                transforms=transforms,
                **{name: run[name] for name in _STORED},
                **goal,
            )
            mcmc._round = int(run.get("round", mcmc._round))
            mcmc._data = [(name, word) for name, word in run["data"]]
            mcmc._world, mcmc._compares_contents = world, contents
            mcmc._record.extend(replace(mcmc._plan, kept=run["kept"]))
            mcmc._record.trace = None if run["trace"] is None else Path(run["trace"])
        mcmc._record.restore(checkpoint, mcmc._groups)
        if mcmc.chain_method in ("sequential", "vectorized"):
            mcmc._random = share_random_stream(mcmc._groups, mcmc._plan, mcmc._round)
        return mcmc

    @poutine.block
    def run(self, *args: Any, **kwargs: Any) -> None:
        """
        Run the chains, continue them, or extend a finished run; see the class.

        :param args: the model's arguments; or a DataLoader, or another iterable of batches, alone.
        :param kwargs: its keyword arguments.
        :raises ModelError: if the model or the data cannot be sampled.
        :raises NonFiniteError: if a chain diverges; the draws before are kept.
        :raises ValueError: if an earlier call had other arguments, or the number of ranks that
            share a chain's data has changed. Distributed chains continue on any number of ranks.
        """
        args = tuple(arg.detach() if torch.is_tensor(arg) else arg for arg in args)
        self._check_data(args, kwargs)
        self._arguments = Arguments(args, kwargs)
        if self._random is not None:
            set_global_random_state(self._random)
            self._random = None
        validation: AbstractContextManager[Any] = nullcontext()
        if self.disable_validation is not None:
            validation = pyro.validation_enabled(not self.disable_validation)
        if self._tries_vectorized:
            self._choose_method(self._arguments)
        follow = self._follow_data(args, kwargs)
        with validation, self._explain_interrupt(), between_steps() as between, follow:
            if self.chain_method == "distributed":
                self._run_on_ranks(between)
                return
            ranks = ranks_of_data(self.kernel.data_parallel)
            check_world(ranks, self._world)
            self._shows_progress = self._record.is_writer = ranks.rank == 0
            if self._goal is not None:
                self._run_to(self._goal, between)
                return
            self._extend_if_finished()
            self._run_chains(between)

    @contextmanager
    def chain(self, number: int) -> Iterator[tuple[Chain, int | None]]:
        """
        Make a chain of the run the kernel's chain within a ``with`` statement. At the end the
        kernel, the buffers of modules and the global random state are as before.

        :param int number: of the chain, from 0.
        :returns: the chain, and its place on a leading axis of chains, None without one.
        :raises RuntimeError: if there is no such chain, or it has not started.
        """
        group = next((group for group in self._groups if number in group.numbers), None)
        if group is None or (group.chain is None and group.saved is None):
            raise RuntimeError(
                f"chain {number} has not started, expected one of the {self.num_chains} chains of "
                "a run that has: call run() first"
            )
        if self._arguments is None:
            raise RuntimeError("the data are not at hand; call run() with them first")
        kernel, modules = self.kernel, [] if group.chain is None else group.chain.buffers.copies()
        with ExitStack() as stack:
            stack.enter_context(preserve_random_state())
            stack.callback(kernel.take_up, kernel.take_up(None))
            # A copy: the group of a chain that runs in another process must hold none here.
            copy = replace(group, saved=deepcopy(group.saved))
            chain = copy.start(kernel, self._plan, *self._arguments)
            stack.callback(chain.buffers.load, modules or chain.buffers.copies())
            yield chain, number if group.vectorized else None

    # -- a run

    def _check_data(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Compare the data with those of the run so far."""
        data = fingerprint(args, kwargs, self._compares_contents)
        if self._data is None:
            self._data = data
            warn_of_opaque(data)
        elif data != self._data_after:
            check_same(self._data, data)

    @contextmanager
    def _follow_data(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Take what a run changes in the objects among its data (a cache) for the same data."""
        try:
            yield
        finally:
            if self._compares_contents and holds_objects(args, kwargs):
                self._data_after = fingerprint(args, kwargs)

    @contextmanager
    def _explain_interrupt(self) -> Iterator[None]:
        """Say at Ctrl-C what was kept, and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            counts, checkpoint = self._counts(), self._record.checkpoint
            kept = " and ".join(map(str, counts)) if len(counts) < 5 else f"{sum(counts)} in all"
            per_chain = f" in each of {len(counts)} chains" if len(counts) > 1 else ""
            draws = (
                f"{kept} of {self._plan.kept} draws{per_chain} are kept (get_samples(), to_arviz)"
                if any(counts)
                else "in warm-up, no draw is kept yet"
            )
            resume = ""
            if checkpoint is not None and checkpoint.exists():
                path = str(checkpoint.path)
                resume = f", and MCMC.resume({path!r}, model) in another process"
            if self._shows_progress:
                inform(f"Interrupted: {draws}. run() with the same data goes on from here{resume}.")
            raise
