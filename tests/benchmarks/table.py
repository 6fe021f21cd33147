# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step costs, ours beside others', as tables.

    python -m tests.benchmarks.table --out docs/results/speed --pages

times every row of every workload, in CPU time of one thread and in wall time of two, each in a
process of its own, for which the threads of torch and of JAX are set. Figures are added to those of
the folder; ``--pages`` writes them into the pages (:mod:`.pages`). Time a quiet machine. Most of
the time goes into compiling, once: code is kept in a folder of the machine's temporary files, and
``--smoke``, which times nothing to speak of, fills it beforehand. A run that is killed may leave
half a file there, with which a row fails: then remove the folder.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own reports

import argparse  # noqa: E402
import gc  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import platform  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import pyro  # noqa: E402
import torch  # noqa: E402

import pyro_aeb as aeb  # noqa: E402

from . import figures, pages  # noqa: E402
from .counting import count  # noqa: E402
from .figures import Figures, Line  # noqa: E402
from .peers.base import Peer  # noqa: E402
from .rows import ROWS  # noqa: E402
from .timing import Turns, as_in_mcmc, failure  # noqa: E402
from .workloads import WORKLOADS, Workload  # noqa: E402

TURNS = {"F": 30, "L": 30, "M": 20, "C": 10, "R": 5}
DURATION = {"F": 0.02, "L": 0.02, "M": 0.05, "C": 0.05, "R": 0.05}
"""Seconds of a row in a turn; at least one call."""

ROOT = Path(__file__).resolve().parents[2]


def environment(threads: int) -> dict[str, str]:
    """For a process of so many threads. Code that torch compiled for another number is not used."""
    cache = Path(tempfile.gettempdir()) / f"pyro_aeb_benchmarks_{os.getuid()}" / str(threads)
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    own = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return os.environ | own | ({"XLA_FLAGS": flags} if threads == 1 else {})


def measure(workload: Workload, names: Sequence[str], turns: int, threads: int) -> list[Line]:
    """
    The lines of a workload, whose rows take turns.

    :param names: of :data:`~benchmarks.rows.ROWS`; those of other workloads are left out.
    :param int threads: 1 for CPU time, otherwise wall time is taken.
    """
    warnings.simplefilter("error", aeb.CompileWarning)  # what was not compiled is not timed as if
    clock = time.process_time if threads == 1 else time.perf_counter
    names = [name for name in names if workload.name in ROWS[name].workloads]
    notes = {name: "not installed" for name in names if not ROWS[name].installed}
    peers: dict[str, Peer] = {}
    counts: dict[str, tuple[int | None, int | None]] = {}
    with as_in_mcmc(threads):
        for name in names:
            if name in notes:
                continue
            try:
                peer = ROWS[name].start(workload)
                found = count(peer) if threads == 1 else None
                counts[name] = (found.operations, found.waits) if found else (None, None)
                peers[name] = peer
            except Exception as error:
                notes[name] = failure(error)
        timed = Turns(peers, DURATION[workload.name], clock)
        before = os.getloadavg()[0]
        timed.take(turns)
        load = before, os.getloadavg()[0]
    notes |= timed.notes
    return [
        Line(
            workload.name,
            threads,
            name,
            tuple(timed.times.get(name, ())),
            *counts.get(name, (None, None)),
            load,
            notes.get(name, ""),
        )
        for name in names
    ]


def machine() -> str:
    """What the figures depend on."""
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"pyro-ppl {pyro.__version__}"]
    for package in ("posteriors", "blackjax", "jax", "numpyro"):
        if importlib.util.find_spec(package) is not None:
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return f"{os.cpu_count()} cores, {_processor()}; {', '.join(versions)}."


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _run(options: argparse.Namespace) -> None:
    """Measure in this process."""
    if options.threads == [2] and hasattr(os, "sched_setaffinity"):  # JAX has as many as cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    (threads,) = options.threads
    for name in options.workloads:
        start = time.monotonic()
        torch.manual_seed(0)
        turns = 2 if options.smoke else max(2, round(options.scale * TURNS[name]))
        lines = measure(WORKLOADS[name](), options.rows, turns, threads)
        found = figures.read(options.out).lines.values()
        figures.write(options.out, Figures([*found, *lines]))
        print(f"{name}, {threads} threads: {time.monotonic() - start:.0f} s", flush=True)
        torch._dynamo.reset()
        gc.collect()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.table", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", nargs="+", type=int, choices=[1, 2], default=[1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of turns")
    parser.add_argument("--smoke", action="store_true", help="two turns")
    parser.add_argument("--here", action="store_true", help="in this process, one kind of figure")
    parser.add_argument("--pages", action="store_true", help="write the figures into the pages")
    parser.add_argument("--out", type=Path, help="a folder; by default one that is thrown away")
    return parser


def main(arguments: Sequence[str] | None = None) -> str:
    """The tables, which are printed too, except by a process for one kind of figure."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory() as folder:
        options = _parser().parse_args(given)
        options.out = options.out or Path(folder)
        if options.here:
            _run(options)
        else:
            for threads in options.threads:
                rest = ["--out", str(options.out), "--here", "--threads", str(threads)]
                command = [sys.executable, "-m", "tests.benchmarks.table", *given, *rest]
                subprocess.run(command, check=True, env=environment(threads), cwd=ROOT)
            (options.out / "machine.md").write_text(machine() + "\n", encoding="utf-8")
            if options.pages:
                pages.fill(options.out)
        text = figures.tables(figures.read(options.out))
    if not options.here:
        print(text)
    return text


if __name__ == "__main__":
    main()
