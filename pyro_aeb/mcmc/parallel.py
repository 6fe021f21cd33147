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

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import numpy as np
import pyro
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_aeb.data.arguments import Arguments
from pyro_aeb.errors import SaveSizeWarning
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.chain_group import ChainGroup, Hook, Plan
from pyro_aeb.mcmc.run_record import RunSink
from pyro_aeb.storage.recorder import Record, Recorder

FIGURES_SECONDS = 0.2
"""Seconds between two messages with figures for the progress bar of a worker."""

POLL_SECONDS = 0.5
"""Seconds between two checks for Ctrl-C while no messages arrive."""

END_SECONDS = 30.0
"""Seconds that a worker has to end once it has sent everything."""


@dataclass(frozen=True)
class Job:
    """
    The task of a worker.

    :param ChainGroup group: of the chain, without its state.
    :param state: a snapshot of the chain, None where it has not started.
    :param Arguments arguments: of the model.
    :param int every: draws between two states that are sent.
    :param int random_seed: of the worker's global random numbers.
    :param int threads: of torch in the worker.
    """

    kernel: AEBKernel
    plan: Plan
    group: ChainGroup
    state: bytes | None
    initial_params: Mapping[str, Tensor] | None
    arguments: Arguments
    hook: Hook | None
    every: int
    random_seed: int
    threads: int
    disable_validation: bool | None


class Receiver(RunSink):
    """The sink of a chain in a worker, whose messages it receives."""

    def receive(self, kind: str, content: Any) -> None:
        """Keep the content of a message."""
        if kind == "start":
            metadata, self.group.draws = content
            self.start(_to_tensors(metadata))
        elif kind == "draw":
            record, figures = content
            if record is not None:  # None in warm-up
                number = self.run.plan.kept_of(self.group.draws)
                self.run.write(self.group.row, number, _to_tensors(record))
            self.group.draws += 1
            self.draw(lambda: figures)
        elif kind == "save":
            self.group.restore(content, f"the state of chain {self.group.first}")
            self.run.save(self.group, content)


def run_in_processes(
    jobs: Sequence[Job],
    receivers: Sequence[Receiver],
    context: str | None,
    between: Callable[[], object],
) -> None:
    """
    Run one worker a job until all are done.

    :param receivers: of the workers' messages, one for every job.
    :param context: of multiprocessing, None for the platform's own.
    :param between: called between messages. When it raises, the workers stop between two steps and
        send their states, and the exception is raised again.
    :raises RuntimeError: if a process died.
    """
    multiprocessing: Any = mp.get_context(context)
    if multiprocessing.get_start_method() == "fork" and not _end_openmp_threads():
        jobs = [replace(job, threads=1) for job in jobs]
    stop = multiprocessing.RawValue("b", 0)  # without a lock, which a dying worker could keep
    workers: dict[Connection, tuple[Any, Receiver]] = {}
    try:
        for job, receiver in zip(jobs, receivers, strict=True):
            inbox, outbox = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(
                name=str(job.group.first), target=_work, args=(job, outbox, stop)
            )
            process.daemon = False  # so that a loader in it may have workers
            workers[inbox] = process, receiver
            _start(process)
            outbox.close()  # the worker's alone, so that the pipe ends with it
        failure = _receive(dict(workers), stop, between)
        for process, _ in workers.values():
            process.join(END_SECONDS)
    finally:
        for inbox, (process, receiver) in workers.items():
            if process.is_alive():
                process.terminate()
            inbox.close()
            receiver.close()
    if failure is not None:
        raise failure


def _end_openmp_threads() -> bool:
    """
    End the threads of OpenMP, which start again when they are needed; return whether that was
    possible. A forked process has its parent's records of them but not the threads, and would wait
    for them for ever if it were to compute with more than one.
    """
    try:
        return not ctypes.CDLL(None).omp_pause_resource_all(1)  # omp_pause_soft
    except (AttributeError, OSError, TypeError):  # another OpenMP, or another way to link it
        return False


START_CURE = (
    "define the model and what it is given at the top level of a module that can be imported (no "
    "lambda, no function in a function, no notebook cell), or use "
    'chain_method="vectorized" or "sequential", or mp_context="fork"'
)


def _start(process: Any) -> None:
    """
    Start a worker.

    :raises TypeError: if its job cannot be sent to it.
    """
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"the run cannot be sent to the process of chain {process.name} ({error}), which "
            f"pickles it; {START_CURE}"
        ) from error


def _receive(
    active: dict[Connection, tuple[Any, Receiver]], stop: Any, between: Callable[[], object]
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
            process, receiver = active[inbox]
            try:
                kind, content = inbox.recv()
            except (EOFError, OSError):  # at the end of the pipe, or in the middle of a message
                failure = failure or _death(process)
                kind, content = "end", None
            if kind == "failure":
                error, trace = content
                place = RuntimeError(f"in the process of chain {process.name}:\n{trace}")
                if error is not None:
                    error.__cause__ = place
                failure = failure or error or place
            elif kind == "end":
                del active[inbox]
            else:
                receiver.receive(kind, content)
            if failure is not None:
                stop.value = 1
    return failure


def _death(process: Any) -> RuntimeError:
    process.join(END_SECONDS)
    if process.exitcode == 1:  # exceptions of a started worker are sent
        return RuntimeError(
            f"the process of chain {process.name} ended before it had read what to run; "
            + START_CURE
        )
    return RuntimeError(
        f"the process of chain {process.name} ended with exit code {process.exitcode} before its "
        "chain did (killed, or out of memory); the draws that it had sent are kept. Run again to "
        "continue from its last checkpoint or draw"
    )


class _Stopped(Exception):
    """Raised in a worker when the run is to stop."""


class _Sender(Recorder):
    """
    Sends the draws and states of a worker's chain to the main process; also a
    :class:`~pyro_aeb.mcmc.chain_group.Sink`.
    """

    def __init__(self, group: ChainGroup, outbox: Connection) -> None:
        self._group = group
        self._outbox = outbox
        self._record: Record | None = None
        self._shown = time.monotonic()

    def add(self, number: int, record: Record) -> None:
        self._record = record

    def start(self, metadata: dict[str, Any]) -> None:
        self.send("start", (_to_arrays(metadata), self._group.draws))

    def draw(self, figures: Callable[[], Mapping[str, str]]) -> None:
        shown: Mapping[str, str] = {}
        if time.monotonic() - self._shown >= FIGURES_SECONDS:
            self._shown, shown = time.monotonic(), figures()
        record, self._record = self._record, None
        self.send("draw", (_to_arrays(record), shown))

    def save(self, snapshot: Callable[[], bytes]) -> None:
        self.send("save", snapshot())

    def close(self) -> None:
        pass

    def send(self, kind: str, content: Any = None) -> None:
        self._outbox.send((kind, content))


def _work(job: Job, outbox: Connection, stop: Any) -> None:
    """Run a job in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_main_process, daemon=True).start()
    torch.set_num_threads(job.threads)
    inductor: Any = sys.modules.get("torch._inductor.config")
    if inductor is not None:
        inductor.compile_threads = 1  # a fork has none of the threads that compile
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
                warnings.simplefilter("ignore", SaveSizeWarning)  # given at the chain's start
                group.restore(job.state, "the saved chain")
            group.start(kernel, plan, *job.arguments, sender)
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
