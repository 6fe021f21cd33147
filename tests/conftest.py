# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What every test starts from: one thread, a known seed, an empty parameter store."""

from __future__ import annotations

import os

# One thread, here and in the processes that tests start: sums then have one order, so that a seed
# gives the same digits on any machine, and two chains do not compete for two cores. Whatever
# measures time sets its own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import functools  # noqa: E402
import multiprocessing  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from pyro_aeb.model.side_effects import start_autograd  # noqa: E402

# Models, data and runs that tests of several folders share.
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

# A shell without job control starts what runs in its background with Ctrl-C ignored; the tests of
# Ctrl-C, and the processes that they start, need it to arrive.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes of the kind "forkserver" get what they run by pickling, as those of "spawn" do, and are
# forks of a server that has imported all this once: they begin within milliseconds, not seconds.
multiprocessing.set_forkserver_preload(["pyro_aeb", "arviz", "xarray", "zarr", "h5netcdf"])


def pytest_configure(config: pytest.Config) -> None:
    """
    Forked processes hold no end of pytest-xdist's pipes. One that hangs, and outlives the worker
    that a timeout has ended, would keep them open, and pytest would wait for that worker forever.
    """
    for plugin in config.pluginmanager.get_plugins():
        gateway = getattr(getattr(plugin, "channel", None), "gateway", None)
        if gateway is not None:
            pipes = [gateway._io.infile.fileno(), gateway._io.outfile.fileno()]
            nothing = os.open(os.devnull, os.O_RDWR)
            for pipe in pipes:
                os.register_at_fork(after_in_child=functools.partial(os.dup2, nothing, pipe))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Give every worker of pytest-xdist as many tests, of which "worksteal" makes parts of the list:
    files with slow ones first, so that short ones are left to share out at the end.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    sizes = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    counts, places = [0] * workers, {}
    for path in sorted(sizes, key=lambda path: (path not in slow, -sizes[path])):
        part = counts.index(min(counts))
        places[path] = part, len(places)
        counts[part] += sizes[path]
    if workers > 1:
        items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """
    Files are not forced to the disk. What that protects from, a machine that loses power, no test
    can tell; a process that is killed loses nothing that it had written.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _processes_that_can_be_forked() -> None:
    """
    Tests that use torch's compiler or its tracing themselves may run before tests of forked chains.
    See :func:`pyro_aeb.model.side_effects.start_autograd`.
    """
    start_autograd()


def _seed() -> None:
    """
    Seed as :func:`pyro.set_rng_seed` does, but for accelerators: where there is none, every call
    leaves a note with the whole stack for each kind of them, which takes longer than many a test.
    """
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    _seed()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many bad inputs got the error they should, where tests counted any."""
    refusals = getattr(sys.modules.get("refusals"), "REFUSALS", {})
    if refusals:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(refusals.items()))
        terminalreporter.write_line(f"{sum(refusals.values())} bad inputs refused: {kinds}")
