# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Chains in processes of their own.

Every worker advances one chain and sends its draws, and now and then its state, to the main
process, which alone writes stores and checkpoints. A worker that is told to stop does so between
two steps and sends its state, so nothing is lost.

Each sends through a pipe of its own, and waits where the pipe is full: draws that the main process
has not yet taken never pile up. A worker that dies, even half-way through a message, leaves the end
of its pipe and takes no lock with it that others wait for.
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

from pyro_aeb.errors import NonFiniteError
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.chain_group import Hook, Lane, Plan, advance, stage_of
from pyro_aeb.mcmc.progress_bar import Bar
from pyro_aeb.mcmc.run_record import RunRecord
from pyro_aeb.storage.recorder import History, Record

FIGURES_SECONDS = 0.2
"""How often a worker sends figures for its progress bar."""

LOOK_SECONDS = 0.5
"""How often the main process looks for Ctrl-C where nothing is sent."""


@dataclass(frozen=True)
class Job:
    """
    What a worker is to do.

    :param AEBKernel kernel: with its options.
    :param Plan plan: of the run.
    :param Lane lane: the chain, and where it stands.
    :param initial_params: where it starts, in unconstrained space.
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
    lane: Lane
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
    What the main process does with what the workers send.

    :param RunRecord record: of the run.
    :param lanes: one for every chain.
    :param describe: gives what a checkpoint says of the run.
    :param bool disable_progbar: whether to show no progress bars.
    """

    def __init__(
        self,
        record: RunRecord,
        lanes: Sequence[Lane],
        describe: Callable[[], Any],
        disable_progbar: bool,
    ) -> None:
        self._record = record
        self._lanes = lanes
        self._describe = describe
        self._disable = disable_progbar
        self._bars: dict[int, Bar] = {}

    def started(self, lane: int, facts: dict[str, Any], draws: int) -> None:
        """A chain has started or gone on; what its kernel says of it, and its draws so far."""
        own = self._lanes[lane]
        own.draws = draws
        self._record.open(own, _tensors(facts), self._describe)
        self._bars[lane] = Bar(self._record.plan, own.draws, f" [{lane}]", self._disable, lane)

    def drawn(self, lane: int, record: Record | None, figures: Mapping[str, str]) -> None:
        """A draw has been made; its record unless it is one of warm-up."""
        if record is not None:
            self._record.write(self._lanes[lane], _tensors(record))
        self._lanes[lane].draws += 1
        self._bars[lane].update(lambda: figures)

    def stands(self, lane: int, state: bytes) -> None:
        """Where a chain stands after its last draw."""
        own = self._lanes[lane]
        data = own.facts.get("observed_data", {})
        own.put_back(state, f"the state of chain {lane}")
        own.facts["observed_data"] = data
        self._record.save(own, state)

    def close(self) -> None:
        """All that was sent is kept."""
        for bar in self._bars.values():
            bar.close()
        self._record.flush()


def run_in_processes(
    jobs: Sequence[Job], context: str | None, receiver: Receiver, between: Callable[[], object]
) -> None:
    """
    Runs one process a job until all are at their end.

    :param jobs: one for every chain.
    :param context: of multiprocessing, None for the platform's own.
    :param Receiver receiver: gets what they send.
    :param between: called between messages; where it raises, the workers stop between two steps and
        send their states before it goes on.
    :raises RuntimeError: if a process died.
    """
    make: Any = mp.get_context(context)
    stop = make.RawValue("b", 0)  # without a lock, which a worker that dies could keep
    workers: dict[Connection, Any] = {}
    try:
        for job in jobs:
            inbox, outbox = make.Pipe(duplex=False)
            process = make.Process(
                name=str(job.lane.numbers[0]), target=_work, args=(job, outbox, stop)
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
    """Passes messages on until every worker has ended; the first failure."""
    failure: BaseException | None = None
    while active:
        if failure is None:
            try:
                between()
            except BaseException as interrupt:
                failure = interrupt
                stop.value = 1
        for inbox in cast("list[Connection]", wait([*active], LOOK_SECONDS)):
            lane = int(active[inbox].name)
            try:
                kind, content = inbox.recv()
            except (EOFError, OSError):  # at the end of the pipe, or half-way through a message
                failure = failure or _death(lane, active[inbox])
                kind, content = "ended", None
            if kind == "started":
                receiver.started(lane, *content)
            elif kind == "drawn":
                receiver.drawn(lane, *content)
            elif kind == "stands":
                receiver.stands(lane, content)
            elif kind == "failed":
                error, trace = content
                place = RuntimeError(f"in the process of chain {lane}:\n{trace}")
                if error is not None:
                    error.__cause__ = place
                failure = failure or error or place
            elif kind == "ended":
                del active[inbox]
            if failure is not None:
                stop.value = 1
    return failure


def _death(lane: int, process: Any) -> RuntimeError:
    process.join()
    return RuntimeError(
        f"the process of chain {lane} ended with exit code {process.exitcode} before its chain did "
        "(killed, or out of memory); what it had sent is kept. Run again to go on from its last "
        "checkpoint or draw"
    )


class _Stopped(Exception):
    """The main process wants the chain to stop."""


class _LastRecord(History):
    """A recorder of the last draw alone, until it is sent."""

    record: Record | None = None

    def add(self, record: Record) -> None:
        self.record = record


def _work(job: Job, outbox: Connection, stop: Any) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    torch.set_num_threads(job.threads)
    pyro.set_rng_seed(job.random_seed)

    def send(kind: str, content: Any = None) -> None:
        outbox.send((kind, content))

    def between() -> None:
        if stop.value:
            raise _Stopped

    try:
        usual = job.disable_validation is None
        with nullcontext() if usual else pyro.validation_enabled(not job.disable_validation):
            _advance(job, send, between)
    except _Stopped:
        pass
    except BaseException as error:
        send("failed", (_sendable(error), traceback.format_exc()))
    send("ended")


def _end_with_the_main_process() -> None:
    """Ends this process, whatever it waits for, once there is nobody to take its draws."""
    main = mp.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


def _sendable(error: BaseException) -> BaseException | None:
    """The error, None if it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error


def _advance(job: Job, send: Callable[..., None], between: Callable[[], None]) -> None:
    kernel, plan, number = job.kernel, job.plan, job.lane.numbers[0]
    kernel.initial_params = job.initial_params
    last = _LastRecord()
    chain = job.lane.start(kernel, plan, job.args, job.kwargs, last)
    send("started", (_plain(kernel.facts()), chain.draws))
    if chain.step == 0:  # what it starts from is kept at once
        send("stands", job.lane.snapshot(kernel))
    shown = time.monotonic()

    def after_draw(draw: Mapping[str, Tensor]) -> None:
        nonlocal shown
        figures: Mapping[str, str] = {}
        if time.monotonic() - shown >= FIGURES_SECONDS:
            shown, figures = time.monotonic(), kernel.logging()
        record, last.record = last.record, None
        send("drawn", (None if record is None else _plain(record), figures))
        if job.hook is not None:
            job.hook(kernel, draw, *stage_of(chain, plan, number))
        if chain.draws % job.every == 0:
            send("stands", job.lane.snapshot(kernel))

    sound = True
    try:
        advance(kernel, plan, after_draw, between)
    except NonFiniteError:
        sound = False
        raise
    finally:
        if sound and not chain.torn:  # else the state before is better
            send("stands", job.lane.snapshot(kernel))
        chain.data.close()


def _plain(value: Any) -> Any:
    """Tensors as arrays: a tensor between processes takes an open file for as long as it lives."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _tensors(value: Any) -> Any:
    """What :func:`_plain` was given."""
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, Mapping):
        return {name: _tensors(item) for name, item in value.items()}
    return value
