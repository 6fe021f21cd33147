# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains in worker processes.

A worker runs one chain, and sends its draws and now and then its state to the main process, which
alone writes stores and checkpoints. When the run is to stop, a worker stops between two steps and
sends its state, so nothing is lost.

Every worker has a pipe of its own and blocks while it is full, so draws do not pile up. A worker
that dies, even in the middle of a message, closes its pipe and holds no lock that others wait for.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import numpy as np
import pyro
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.chain_group import ChainGroup, Hook, Plan
from pyro_aeb.mcmc.progress_bar import Bar
from pyro_aeb.mcmc.run_record import RunRecord
from pyro_aeb.storage.recorder import Record

FIGURES_SECONDS = 0.2
"""Seconds between two messages with figures for the progress bar of a worker."""

POLL_SECONDS = 0.5
"""Seconds between two checks for Ctrl-C while no messages arrive."""


@dataclass(frozen=True)
class Job:
    """
    The task of a worker.

    :param AEBKernel kernel: with its options.
    :param Plan plan: of the run.
    :param ChainGroup group: of the chain, without its state.
    :param state: a snapshot of the chain, None where it has not started.
    :param initial_params: starting point in unconstrained space.
    :param args: the model's arguments.
    :param kwargs: its keyword arguments.
    :param hook: called after every draw, in the worker.
    :param int every: draws between two states that are sent.
    :param int random_seed: of the worker's global random numbers.
    :param threads: of torch in the worker.
    :param disable_validation: as of Pyro's MCMC.
    """

    kernel: AEBKernel
    plan: Plan
    group: ChainGroup
    state: bytes | None
    initial_params: Mapping[str, Tensor] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    hook: Hook | None
    every: int
    random_seed: int
    threads: int
    disable_validation: bool | None


class Receiver:
    """
    Keeps what workers send to the main process.

    :param RunRecord record: of the run.
    :param groups: one for every chain.
    :param describe: returns the description of the run that a checkpoint holds.
    :param bool disable_progbar: whether to show no progress bars.
    """

    def __init__(
        self,
        record: RunRecord,
        groups: Sequence[ChainGroup],
        describe: Callable[[], Any],
        disable_progbar: bool,
    ) -> None:
        self._record = record
        self._groups = groups
        self._describe = describe
        self._disable_progbar = disable_progbar
        self._bars: dict[int, Bar] = {}

    def start(self, chain: int, metadata: dict[str, Any], draws: int) -> None:
        """Prepare for the draws of a chain that has started or resumed at ``draws`` draws."""
        group = self._groups[chain]
        group.draws = draws
        self._record.open(group, _to_tensors(metadata), self._describe)
        plan, disable = self._record.plan, self._disable_progbar
        self._bars[chain] = Bar(plan, draws, group.name, disable, chain)

    def draw(self, chain: int, record: Record | None, figures: Mapping[str, str]) -> None:
        """Keep a draw; it has no record if it is one of warm-up."""
        group = self._groups[chain]
        if record is not None:
            number = self._record.plan.kept_of(group.draws)
            self._record.write(chain, number, _to_tensors(record))
        group.draws += 1
        self._bars[chain].update(lambda: figures)

    def save(self, chain: int, state: bytes) -> None:
        """Save the state of a chain after its last draw."""
        group = self._groups[chain]
        group.restore(state, f"the state of chain {chain}")
        self._record.save(group, state)

    def close(self) -> None:
        """Write all draws, and close the progress bars."""
        for bar in self._bars.values():
            bar.close()
        self._record.flush()


def run_in_processes(
    jobs: Sequence[Job], context: str | None, receiver: Receiver, between: Callable[[], object]
) -> None:
    """
    Run one worker a job until all are done.

    :param jobs: one for every chain.
    :param context: of multiprocessing, None for the platform's own.
    :param Receiver receiver: of their messages.
    :param between: called between messages. When it raises, the workers stop between two steps and
        send their states, and the exception is raised again.
    :raises RuntimeError: if a process died.
    """
    multiprocessing: Any = mp.get_context(context)
    stop = multiprocessing.RawValue("b", 0)  # without a lock, which a dying worker could keep
    workers: dict[Connection, Any] = {}
    try:
        for job in jobs:
            inbox, outbox = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(
                name=str(job.group.first), target=_work, args=(job, outbox, stop)
            )
            process.daemon = False  # so that a loader in it may have workers
            workers[inbox] = process
            process.start()
            outbox.close()  # the worker's alone, so that the pipe ends with it
        failure = _receive(dict(workers), stop, receiver, between)
        for process in workers.values():
            process.join()
    finally:
        for inbox, process in workers.items():
            if process.is_alive():
                process.terminate()
            inbox.close()
        receiver.close()
    if failure is not None:
        raise failure


def _receive(
    active: dict[Connection, Any], stop: Any, receiver: Receiver, between: Callable[[], object]
) -> BaseException | None:
    """Receive messages until every worker has ended; return the first failure."""
    failure: BaseException | None = None
    while active:
        if failure is None:
            try:
                between()
            except BaseException as interrupt:
                failure = interrupt
                stop.value = 1
        for inbox in cast("list[Connection]", wait([*active], POLL_SECONDS)):
            chain = int(active[inbox].name)
            try:
                kind, content = inbox.recv()
            except (EOFError, OSError):  # at the end of the pipe, or in the middle of a message
                failure = failure or _death(chain, active[inbox])
                kind, content = "end", None
            if kind == "start":
                receiver.start(chain, *content)
            elif kind == "draw":
                receiver.draw(chain, *content)
            elif kind == "save":
                receiver.save(chain, content)
            elif kind == "failure":
                error, trace = content
                place = RuntimeError(f"in the process of chain {chain}:\n{trace}")
                if error is not None:
                    error.__cause__ = place
                failure = failure or error or place
            elif kind == "end":
                del active[inbox]
            if failure is not None:
                stop.value = 1
    return failure


def _death(chain: int, process: Any) -> RuntimeError:
    process.join()
    return RuntimeError(
        f"the process of chain {chain} ended with exit code {process.exitcode} before its chain "
        "did (killed, or out of memory); the draws that it had sent are kept. Run again to "
        "continue from its last checkpoint or draw"
    )


class _Stopped(Exception):
    """Raised in a worker when the run is to stop."""


class _Sender:
    """
    Sends the draws and states of a worker's chain to the main process; a
    :class:`~pyro_aeb.storage.recorder.Recorder` and a :class:`~pyro_aeb.mcmc.chain_group.Sink`.
    """

    def __init__(self, group: ChainGroup, outbox: Connection) -> None:
        self._group = group
        self._outbox = outbox
        self._record: Record | None = None
        self._shown = time.monotonic()

    def add(self, number: int, record: Record) -> None:
        self._record = record

    def read(self, group: str) -> dict[str, Tensor]:
        return {}

    def forget_draws(self) -> None:
        pass

    def start(self, kernel: AEBKernel) -> None:
        self.send("start", (_to_arrays(kernel.facts()), kernel.chain.draws))

    def draw(self, kernel: AEBKernel) -> None:
        figures: Mapping[str, str] = {}
        if time.monotonic() - self._shown >= FIGURES_SECONDS:
            self._shown, figures = time.monotonic(), kernel.logging()
        record, self._record = self._record, None
        self.send("draw", (_to_arrays(record), figures))

    def save(self, kernel: AEBKernel) -> None:
        self.send("save", self._group.snapshot(kernel))

    def close(self) -> None:
        pass

    def send(self, kind: str, content: Any = None) -> None:
        self._outbox.send((kind, content))


def _work(job: Job, outbox: Connection, stop: Any) -> None:
    """Run a job in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_main_process, daemon=True).start()
    torch.set_num_threads(job.threads)
    pyro.set_rng_seed(job.random_seed)
    kernel, plan, group = job.kernel, job.plan, job.group
    sender = _Sender(group, outbox)

    def between() -> None:
        if stop.value:
            raise _Stopped

    try:
        default = job.disable_validation is None
        with nullcontext() if default else pyro.validation_enabled(not job.disable_validation):
            kernel.initial_params = job.initial_params
            if job.state is not None:
                group.restore(job.state, "the saved chain")
            group.start(kernel, plan, job.args, job.kwargs, sender)
            group.run(kernel, plan, sender, between, job.hook, job.every)
    except _Stopped:
        pass
    except BaseException as error:
        sender.send("failure", (_picklable(error), traceback.format_exc()))
    sender.send("end")


def _exit_with_main_process() -> None:
    """Exit when the main process ends, whatever this process waits for."""
    main = mp.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


def _picklable(error: BaseException) -> BaseException | None:
    """Return the error, None if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error


def _to_arrays(value: Any) -> Any:
    """Convert tensors to arrays: a tensor sent to another process keeps a file open."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().numpy(), value)


def _to_tensors(value: Any) -> Any:
    """Convert arrays back to tensors."""
    return tree_map_only(np.ndarray, torch.as_tensor, value)
