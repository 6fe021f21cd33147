# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Draws with known values, and processes that write them to a trace until killed."""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from pyro_aeb.storage.zarr_trace import TraceFile

CHAINS, DRAWS = 2, 100_000  # more than a process writes before it is killed
SHAPES = {"net/weight": (40, 50), "bias": (3,), "sigma2": ()}


def make_record(chain: int, draw: int, shapes=None) -> dict[str, dict[str, torch.Tensor]]:
    """Return a draw of sites of these shapes; its values encode chain, draw and index."""
    posterior = {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape) / 8 + draw + 0.5 * chain
        for name, shape in (shapes or SHAPES).items()
    }
    return {
        "posterior": posterior,
        "sample_stats": {
            "diverging": torch.tensor(draw % 3 == chain),
            "step": torch.tensor(10 * draw + chain),
            "potential": torch.tensor(1 / (1 + draw + chain), dtype=torch.float64),
        },
        "adaptation": {"bias_rho": torch.sigmoid(posterior["bias"] / 16)},
    }


def make_records(chain: int, start: int, stop: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the draws of a chain from ``start`` to ``stop``, stacked."""
    records = [make_record(chain, draw) for draw in range(start, stop)]
    return {
        group: {name: torch.stack([r[group][name] for r in records]) for name in variables}
        for group, variables in records[0].items()
    }


def write_until_killed(path: Path, connection: Connection, chain: int, start: int) -> None:
    """Write draws of a chain from ``start`` on, and send how many are flushed, until killed."""
    trace = TraceFile(path, CHAINS, DRAWS, resume=True)
    for draw in range(start, DRAWS):
        trace.write(chain, draw, make_record(chain, draw))
        if draw % 17 == 0:
            trace.flush()
            connection.send(trace.finished[chain])
            time.sleep(0.001)


class Writer:
    """A process that runs :func:`write_until_killed`."""

    def __init__(self, path: Path, chain: int = 0, start: int = 0) -> None:
        context = multiprocessing.get_context("forkserver")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=write_until_killed, args=(path, sender, chain, start)
        )
        self._process.start()
        sender.close()
        self.safe = 0

    def wait(self) -> int:
        """Wait until more draws are flushed, and return their number."""
        assert self._receiver.poll(60), "the process has written nothing"
        self.safe = self._receiver.recv()
        return self.safe

    def kill(self) -> int:
        """Kill the process by signal 9, and return how many draws it has reported as flushed."""
        self._process.kill()
        self._process.join()
        assert self._process.exitcode == (-9 if sys.platform != "win32" else 1)
        while self._receiver.poll():
            try:
                self.safe = self._receiver.recv()
            except EOFError:
                break
        return self.safe
