# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step costs on an accelerator, by batch size, and what chains together cost there.

    python -m tests.benchmarks.accelerator --out FOLDER

writes ``accelerator.csv`` and ``accelerator.md``, anew after every case, so that a run that is cut
short leaves what it had. A case is a workload and a batch size, or a number of chains; after
``--seconds`` no further one is begun, and ``--continue FOLDER`` begins with what an earlier run
left. All of it takes some ten minutes, most of them for compiling. ``--smoke`` runs a little of
everything, on the CPU too.

The data are on the device, and samplers draw their batches there. Rows take turns
(:mod:`.timing`), from a device that has nothing to do to one that has done all.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own reports
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX leaves torch its memory

import argparse  # noqa: E402
import csv  # noqa: E402
import gc  # noqa: E402
import importlib.util  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import asdict, dataclass, replace  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402
from typing import Any  # noqa: E402

import pyro  # noqa: E402
import torch  # noqa: E402

import pyro_aeb as aeb  # noqa: E402

from . import rows  # noqa: E402
from .counting import count  # noqa: E402
from .device_workloads import MODELS, DeviceWorkload  # noqa: E402
from .graphs import alone_in_a_graph, step_in_a_graph  # noqa: E402
from .peers import alone, ours  # noqa: E402
from .peers.base import Peer  # noqa: E402
from .timing import Turns, as_in_mcmc, failure, ratio  # noqa: E402
from .workloads import Step, Workload  # noqa: E402

TURNS, DURATION = 8, 0.05
"""Of a case, and the seconds that a row is timed in one."""

SECONDS = 560.0
"""After which no case is begun."""

BATCHES = (64, 1024, 1, 256, 8)
CHAINS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Row:
    """
    What is timed.

    :param str title: as the table has it.
    :param start: makes it of a workload.
    :param bool graph: whether it needs a CUDA device.
    :param package: which it needs.
    """

    title: str
    start: Callable[[Workload], Peer]
    graph: bool = False
    package: str | None = None

    def runs_on(self, device: torch.device) -> bool:
        """Whether its package is there, and has the device."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return False
        if self.package == "blackjax":
            import jax

            return device.type == ("cpu" if jax.default_backend() == "cpu" else "cuda")
        return device.type == "cuda" or not self.graph


def _shared(name: str) -> Row:
    """A row that the table of a CPU has, too."""
    own = rows.ROWS[name]
    return Row(own.title, own.start, package=own.package)


ROWS: dict[str, Row] = {
    "alone": _shared("alone"),
    "graph": Row("… as a CUDA graph", alone_in_a_graph, graph=True),
    "compiled": Row("… reduce-overhead", partial(alone.start_compiled, mode="reduce-overhead")),
    "ours": _shared("ours"),
    "ours-three-point": _shared("ours-three-point"),
    "ours-pruned": _shared("ours-pruned"),
    "ours-graph": Row("… a whole step as a CUDA graph (trial)", step_in_a_graph, graph=True),
    "ours-compiled": _shared("ours-compiled"),
    "blackjax": _shared("blackjax"),
    "posteriors": _shared("posteriors"),
    "posteriors-compiled": _shared("posteriors-compiled"),
    "sgd": _shared("sgd"),
    "authors": _shared("authors"),
    "authors-pruned": _shared("authors-pruned"),
}
COMPILED = ("compiled", "ours-compiled", "posteriors-compiled")
"""Rows that take seconds to compile, those of a ResNet20 minutes."""


@dataclass(frozen=True)
class Case:
    """
    :param str model: F, L, M, C or R.
    :param batch: the batch size, None for all rows.
    :param compiled: which compiled rows are timed.
    :param chains: how many together, beside one; None for the rows.
    :param bool counts: whether operations are counted, of which any batch size has as many.
    """

    model: str
    batch: int | None
    compiled: tuple[str, ...] = ()
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
    operations: int | None = None
    waits: int | None = None
    begin: float | None = None
    note: str = ""


def cases() -> list[Case]:
    """All of them, those that tell most first."""
    two = COMPILED[:2]
    first = [Case("F", 50, COMPILED, counts=True), Case("L", None, COMPILED, counts=True)]
    first += [Case(m, 64, COMPILED, counts=True) for m in "MC"]
    first += [Case("R", 64, two, counts=True)]
    together = [Case("L", None, chains=n) for n in CHAINS[1:]]
    together += [Case("M", 64, chains=n) for n in CHAINS[1:]]
    rest = [Case(m, n, two) for n in BATCHES[1:] for m in "MC"]
    rest += [Case("F", 1, two), *(Case("R", n, two[1:]) for n in BATCHES[1:])]
    return [*first, *together, *rest]


def smoke_cases() -> list[Case]:
    """A little of everything."""
    first = [Case("F", 50), Case("L", None, counts=True)]
    return [*first, Case("M", 1), Case("C", 1), Case("L", None, chains=2)]


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


def measure(case: Case, device: torch.device, names: Sequence[str], turns: int) -> list[Line]:
    """The lines of a case; its rows take turns."""
    torch.manual_seed(0)
    workload = MODELS[case.model](case.batch, device)
    if case.chains is not None:
        return [_together(case, workload, turns)]
    peers: dict[str, Peer] = {}
    lines: dict[str, Line] = {}
    for name in names:
        row = ROWS[name]
        if not row.runs_on(device) or (name in COMPILED and name not in case.compiled):
            continue
        lines[name] = Line(case.model, case.batch, name)
        try:
            peers[name], about = _begin(row, workload, device, case.counts)
            lines[name] = replace(lines[name], **about)
        except Exception as error:
            lines[name] = replace(lines[name], note=failure(error))
    timed = Turns(peers, DURATION)
    timed.take(turns)
    return [_timed(line, timed) for line in lines.values()]


def _begin(
    row: Row, workload: DeviceWorkload, device: torch.device, counts: bool
) -> tuple[Peer, dict[str, Any]]:
    """Start a row, and tell what is known of it before it is timed."""
    start = time.perf_counter()
    peer = row.start(workload)
    for _ in range(4):
        peer.call()
    peer.wait()
    begin = round(time.perf_counter() - start, 2)
    found = count(peer) if counts else None
    waiting = waits(peer.call, device) if peer.torch else None
    return peer, {"waits": waiting, "begin": begin, "operations": found and found.operations}


def _together(case: Case, workload: DeviceWorkload, turns: int) -> Line:
    """Chains together beside one chain."""
    line = Line(case.model, case.batch, "chains", case.chains or 1)
    try:
        together = workload.together(line.chains)
        for _ in range(3):
            together()
        line = replace(line, waits=waits(together, workload.x.device))
        timed = Turns({"chains": Peer(together), "alone": ours.start(workload)}, DURATION)
    except Exception as error:
        return replace(line, note=failure(error))
    timed.take(turns)
    return _timed(line, timed)


def _timed(line: Line, timed: Turns) -> Line:
    """A line with its times."""
    times, others = timed.times.get(line.row, []), timed.times.get("alone", [])
    note = line.note or timed.notes.get(line.row, "")
    if len(times) < 2:
        return replace(line, note=note)
    line = replace(line, note=note, turns=len(times), ms=1e3 * median(times))
    if len(others) < 2:
        return line
    low, middle, high = ratio(times, others)
    return replace(line, ratio=middle, lower=low, upper=high)


# -- the table -----------------------------------------------------------------------------------


def markdown(lines: Sequence[Line]) -> str:
    """A table for every workload and batch size, and one of chains together."""
    parts = []
    kinds = dict.fromkeys((line.model, line.batch) for line in lines if line.row != "chains")
    for model, batch in sorted(kinds, key=lambda kind: ("FLMCR".index(kind[0]), kind[1] or 0)):
        own = [x for x in lines if (x.model, x.batch) == (model, batch) and x.row != "chains"]
        size = "all rows" if batch is None else f"batches of {batch}"
        parts += [
            f"**{model}, {size}**",
            "",
            "| step | ms | / forward + backward | quartiles | operations | waits | begins in s |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *("| " + " | ".join(_cells(line)) + " |" for line in own),
            "",
        ]
    if together := [line for line in lines if line.row == "chains"]:
        parts += [
            "**Chains together**, in steps of one chain",
            "",
            "| model | batch | chains | ms | ratio | quartiles | waits |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *("| " + " | ".join(_chain_cells(line)) + " |" for line in together),
            "",
        ]
    return "\n".join(parts)


def _text(value: float | int | None, form: str = "") -> str:
    return "" if value is None else format(value, form)


def _figures(line: Line) -> list[str]:
    if line.ms is None:
        return [f"failed ({line.note})", "", ""]
    range_ = "" if line.lower is None else f"{line.lower:.2f} – {line.upper:.2f}"
    return [_text(line.ms, ".3g"), _text(line.ratio, ".2f"), range_]


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


def read(folder: Path) -> list[Line]:
    """The lines of an earlier run."""
    with (folder / "accelerator.csv").open(encoding="utf-8", newline="") as file:
        return [_line(cells) for cells in csv.DictReader(file)]


def _line(cells: dict[str, str]) -> Line:
    words = {name: cells.pop(name) for name in ("model", "row", "note")}
    numbers = {name: _number(cell) for name, cell in cells.items()}
    return Line(**words, **numbers)  # type: ignore[arg-type]


def _number(cell: str) -> float | int | None:
    return None if not cell else int(cell) if cell.isdigit() else float(cell)


def _left(cases: Sequence[Case], lines: Sequence[Line]) -> list[Case]:
    """The cases that have no line yet."""
    own = {(x.model, x.batch, x.chains if x.row == "chains" else None) for x in lines}
    return [case for case in cases if (case.model, case.batch, case.chains) not in own]


def _parser() -> argparse.ArgumentParser:
    about = str(__doc__).strip().splitlines()[0]
    parser = argparse.ArgumentParser("python -m tests.benchmarks.accelerator", description=about)
    parser.add_argument("--out", type=Path, help="a folder for the table and a CSV file")
    parser.add_argument("--continue", dest="earlier", type=Path, help="a folder of an earlier run")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"default {SECONDS:.0f}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="two turns of a little of everything")
    return parser


def main(arguments: Sequence[str] | None = None) -> str:
    """The table, which is printed too."""
    options = _parser().parse_args(arguments)
    device, start = torch.device(options.device), time.monotonic()
    warnings.simplefilter("error", aeb.CompileWarning)  # what was not compiled is not timed as if
    lines = [] if options.earlier is None else read(options.earlier)
    text = ""
    with as_in_mcmc():
        for case in _left(smoke_cases() if options.smoke else cases(), lines):
            if (spent := time.monotonic() - start) > options.seconds:
                print(f"{spent:.0f} s: left out {case}", flush=True)
                continue
            lines += measure(case, device, options.rows, 2 if options.smoke else TURNS)
            print(f"{time.monotonic() - start:.0f} s: {case}", flush=True)
            text = markdown(lines) + "\n" + machine(device) + "\n"
            if options.out is not None:
                write(options.out, lines, text)
            torch._dynamo.reset()
            gc.collect()
    print(text)
    return text


if __name__ == "__main__":
    main()
