# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step costs on an accelerator, by batch size, and what chains together cost there.

    python -m tests.benchmarks.accelerator --out FOLDER

writes ``accelerator.csv`` and ``accelerator.md``, anew after every case, so that a run that is cut
short leaves what it had. A case is a workload and a batch size, or a number of chains; after
``--seconds`` no further one is begun. ``--smoke`` runs a little of everything, on the CPU too.

The data are on the device, and models pick the rows of their batch by a plate's indices. The step
and forward and backward alone are timed in turn, a few calls each, from a device that has nothing
to do to one that has done all.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own reports

import argparse  # noqa: E402
import csv  # noqa: E402
import gc  # noqa: E402
import importlib.util  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import pyro  # noqa: E402
import torch  # noqa: E402

import pyro_aeb as aeb  # noqa: E402

from .counting import count  # noqa: E402
from .device_workloads import MODELS, DeviceWorkload  # noqa: E402
from .graphs import alone_in_a_graph, step_in_a_graph  # noqa: E402
from .peers import authors, ours, posteriors_sghmc, sgd  # noqa: E402
from .peers.base import Peer  # noqa: E402
from .timing import Timing, as_in_mcmc  # noqa: E402
from .workloads import Step, Workload  # noqa: E402


class Plan(NamedTuple):
    """
    :param int rounds: of all rows of a case.
    :param int turns: of a row, a round.
    :param calls: by workload, of a step and of forward and backward alone, a turn.
    """

    rounds: int
    turns: int
    calls: dict[str, int]


WHOLE = Plan(3, 6, {"L": 10, "M": 10, "C": 10, "R": 3})
SMOKE = Plan(1, 2, dict.fromkeys("LMCR", 1))

SECONDS = 190.0
"""After which no case is begun."""

BATCHES = (1, 8, 64, 256, 1024)
CHAINS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Row:
    """
    What is timed beside forward and backward alone.

    :param str title: as the table has it.
    :param start: makes it of a workload.
    :param bool graph: whether it needs a CUDA device.
    :param str compiles: what is compiled, ``""`` for nothing.
    """

    title: str
    start: Callable[[Workload], Peer]
    graph: bool = False
    compiles: str = ""


def our(**options: Any) -> Callable[[Workload], Peer]:
    """Ours, with options of the kernel."""
    return partial(ours.start, **options)


def _compiled_alone(workload: Workload) -> Peer:
    """Forward and backward alone, by torch's compiler and CUDA graphs."""
    return Peer(compiled(workload), workload.alone())


def compiled(workload: Workload) -> Step:
    """The step of :meth:`Workload.alone`, compiled."""
    parameters = list(workload.network.parameters())
    total = torch.compile(
        lambda x, y: workload.log_likelihood(workload.network(x), y) * workload.scale,
        mode="reduce-overhead",
        dynamic=False,
    )
    return lambda: torch.autograd.grad(total(*workload.batch()), parameters)


PRUNED = {"pruning": aeb.MagnitudePruning(0.9)}
THREE_POINT = {"noise": "three-point"}

ROWS: dict[str, Row] = {
    "graph": Row("forward + backward, CUDA graph", alone_in_a_graph, graph=True),
    "compiled": Row("forward + backward, reduce-overhead", _compiled_alone, compiles="all"),
    "ours": Row("AEBKernel", our()),
    "ours-three-point": Row("… three-point noise", our(**THREE_POINT)),
    "ours-pruned": Row("… 90 % pruned at every step", our(**PRUNED)),
    "ours-update": Row("… compiled update", our(compile="update"), compiles="update"),
    "ours-all": Row("… gradient and update compiled", our(compile="all"), compiles="all"),
    "ours-all-three-point": Row(
        "… and three-point noise", our(compile="all", **THREE_POINT), compiles="all"
    ),
    "ours-graph": Row("… a whole step as a CUDA graph (trial)", step_in_a_graph, graph=True),
    "sgd": Row("torch.optim.SGD with momentum", sgd.start),
    "posteriors": Row("posteriors, sghmc", posteriors_sghmc.start),
    "authors": Row("the authors' manner", authors.start),
    "authors-pruned": Row("… 90 % pruned at every step", partial(authors.start, prune=0.9)),
}


@dataclass(frozen=True)
class Case:
    """
    :param str model: L, M, C or R.
    :param batch: the batch size, None for all rows.
    :param compiles: what may be compiled: each costs seconds, of a deep network many.
    :param chains: how many together, beside one; None for the rows.
    :param bool counts: whether operations are counted, of which any batch size has as many.
    """

    model: str
    batch: int | None
    compiles: tuple[str, ...] = ("", "update", "all")
    chains: int | None = None
    counts: bool = False


@dataclass(frozen=True)
class Line:
    """
    One line of the table.

    :param turns: 0 where it has failed, and ``note`` says how.
    :param ratio: the median over turns of step / (forward + backward alone), or of a step of
        chains together / one chain's; with its quartiles.
    :param begin: seconds until the first steps were made, compiling among them.
    :param waits: of one step for the device.
    """

    model: str
    batch: int | None
    row: str
    chains: int = 1
    turns: int = 0
    ratio: float | None = None
    lower: float | None = None
    upper: float | None = None
    ms: float | None = None
    alone_ms: float | None = None
    operations: int | None = None
    waits: int | None = None
    begin: float | None = None
    note: str = ""


def cases() -> list[Case]:
    """All of them, those that tell most first."""
    plain, update = ("",), ("", "update")
    first = [Case("L", None, counts=True), Case("M", 64, counts=True)]
    first += [Case("C", 64, counts=True), Case("R", 64, update, counts=True)]
    together = [Case("L", None, chains=n) for n in CHAINS[1:]]
    together += [Case("M", 64, chains=n) for n in CHAINS[1:3]]
    rest = [Case(m, n, plain if m == "R" else update) for n in (1, 1024, 8, 256) for m in "MCR"]
    compiled = [Case("R", 64, ("all",)), Case("M", 64, chains=64)]
    compiled += [Case(m, n, ("all",)) for n in (1024, 1) for m in "MC"]
    return [*first, *together, *rest, *compiled]


def smoke_cases() -> list[Case]:
    """A little of everything."""
    plain = ("",)
    first = Case("L", None, counts=True)
    return [first, Case("M", 1, plain), Case("C", 1, plain), Case("L", None, chains=2)]


# -- one case ------------------------------------------------------------------------------------


def waits(step: Step, device: torch.device) -> int | None:
    """How often a step makes the program wait for the device; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)


@contextmanager
def _failure(note: list[str]) -> Iterator[None]:
    """A row that fails leaves a note, and the others run."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        note.append(f"{type(error).__name__}: {first}"[:200])


def measure(case: Case, device: torch.device, names: Sequence[str], plan: Plan) -> list[Line]:
    """The lines of a case; its rows take turns."""
    torch.manual_seed(0)
    make = MODELS[case.model]
    if case.chains is not None:
        return [_together(case, make(case.batch, device), plan)]
    peers: dict[str, Peer] = {}
    about: dict[str, dict[str, Any]] = {}
    notes: dict[str, list[str]] = {}
    workload = make(case.batch, device)
    for name in names:
        row = ROWS[name]
        if row.compiles not in case.compiles or (row.graph and device.type != "cuda"):
            continue
        if name == "posteriors" and importlib.util.find_spec("posteriors") is None:
            continue
        notes[name] = []
        with _failure(notes[name]):
            start = time.perf_counter()
            peer = row.start(workload)
            for _ in range(4):
                peer.step()
            begin = time.perf_counter() - start
            about[name] = {"waits": waits(peer.step, device), "begin": round(begin, 2)}
            if case.counts:
                counts = count(peer)
                about[name]["operations"] = counts and counts.operations
            peers[name] = peer
    timings = {name: Timing() for name in peers}
    for _ in range(plan.rounds):
        for name, peer in peers.items():
            with _failure(notes[name]):
                timings[name].take_turns(peer, plan.turns, plan.calls[case.model])
    return [
        _line(case, name, timings.get(name, Timing()), notes[name], about.get(name, {}))
        for name in notes
    ]


def _together(case: Case, workload: DeviceWorkload, plan: Plan) -> Line:
    """Chains together beside one chain."""
    note: list[str] = []
    timing, about = Timing(), {}
    with _failure(note):
        together = workload.together(case.chains)
        alone = ours.start(workload)
        for _ in range(3):
            together()
        waiting = waits(together, workload.x.device)
        about = {"chains": case.chains, "waits": waiting}
        turns = plan.rounds * plan.turns
        timing.take_turns(Peer(together, alone.step), turns, plan.calls[case.model])
    return _line(case, "chains", timing, note, about)


def _line(
    case: Case, name: str, timing: Timing, note: Sequence[str], about: dict[str, Any]
) -> Line:
    line = Line(case.model, case.batch, name, note="; ".join(note), **about)
    if len(timing.step) < 2:
        return line
    lower, ratio, upper = timing.ratio()
    ms, alone = timing.milliseconds()
    figures = {"ratio": ratio, "lower": lower, "upper": upper, "ms": ms, "alone_ms": alone}
    return Line(**{**asdict(line), **figures, "turns": len(timing.step)})


# -- the table -----------------------------------------------------------------------------------


def markdown(lines: Sequence[Line]) -> str:
    """A table for every workload and batch size, and one of chains together."""
    parts = []
    kinds = dict.fromkeys((line.model, line.batch) for line in lines if line.row != "chains")
    for model, batch in kinds:
        own = [x for x in lines if (x.model, x.batch) == (model, batch) and x.row != "chains"]
        alone = next((line.alone_ms for line in own if line.alone_ms), None)
        size = "all rows" if batch is None else f"batches of {batch}"
        parts += [
            f"**{model}, {size}**" + (f"; forward + backward alone {alone:.3g} ms" * bool(alone)),
            "",
            "| step | ratio | quartiles | ms | operations | waits | begins in s |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *("| " + " | ".join(_cells(line)) + " |" for line in own),
            "",
        ]
    if together := [line for line in lines if line.row == "chains"]:
        parts += [
            "**Chains together**, in steps of one chain",
            "",
            "| model | batch | chains | ratio | quartiles | ms | waits |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *("| " + " | ".join(_chain_cells(line)) + " |" for line in together),
            "",
        ]
    return "\n".join(parts)


def _text(value: float | int | None, form: str = "") -> str:
    return "" if value is None else format(value, form)


def _figures(line: Line) -> list[str]:
    if line.ratio is None:
        return [f"failed ({line.note})", "", ""]
    return [f"{line.ratio:.2f}", f"{line.lower:.2f} – {line.upper:.2f}", _text(line.ms, ".3g")]


def _cells(line: Line) -> list[str]:
    rest = [_text(line.operations), _text(line.waits), _text(line.begin, ".1f")]
    return [ROWS[line.row].title, *_figures(line), *rest]


def _chain_cells(line: Line) -> list[str]:
    own = [line.model, _text(line.batch) or "all", _text(line.chains)]
    return [*own, *_figures(line), _text(line.waits)]


def machine(device: torch.device) -> str:
    """What the figures depend on."""
    name = "no accelerator"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores; {versions}, pyro-ppl {pyro.__version__}."


def write(folder: Path, lines: Sequence[Line], text: str) -> None:
    """Both files, anew."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "accelerator.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Line.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
    (folder / "accelerator.md").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> str:
    """The table, which is printed too."""
    about = str(__doc__).strip().splitlines()[0]
    parser = argparse.ArgumentParser("python -m tests.benchmarks.accelerator", description=about)
    parser.add_argument("--out", type=Path, help="a folder for the table and a CSV file")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"default {SECONDS:.0f}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="a round of a little of everything")
    options = parser.parse_args(arguments)
    device, start = torch.device(options.device), time.monotonic()
    warnings.simplefilter("error", aeb.CompileWarning)  # what was not compiled is not timed as if
    torch._dynamo.config.recompile_limit = 64  # a compiled row for every case
    lines: list[Line] = []
    text = ""
    with as_in_mcmc():
        for case in smoke_cases() if options.smoke else cases():
            if (spent := time.monotonic() - start) > options.seconds:
                print(f"{spent:.0f} s: left out {case}", flush=True)
                continue
            lines += measure(case, device, options.rows, SMOKE if options.smoke else WHOLE)
            print(f"{time.monotonic() - start:.0f} s: {case}", flush=True)
            text = markdown(lines) + "\n" + machine(device) + "\n"
            if options.out is not None:
                write(options.out, lines, text)
            gc.collect()
    print(text)
    return text


if __name__ == "__main__":
    main()
