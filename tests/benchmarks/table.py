# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What a step costs, ours beside others', as one table.

    python -m tests.benchmarks.table

writes Markdown: for every workload and row the quartiles of step / (forward + backward), the
median milliseconds of a step, and the operations and waits of one step. Time a quiet machine; it
takes about ten minutes. ``--smoke`` runs everything once, for nothing but to see that it runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own reports

import argparse  # noqa: E402
import csv  # noqa: E402
import importlib  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import platform  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pyro  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import pyro_aeb as aeb  # noqa: E402

from .counting import Counts, count  # noqa: E402
from .peers.base import Peer  # noqa: E402
from .timing import THREADS, Timing, as_in_mcmc  # noqa: E402
from .workloads import TITLES, WORKLOADS, Workload  # noqa: E402

OUT = """a folder for a CSV file of each workload, and for table.md, which has those of earlier runs
there too"""

ROUNDS = 5
"""Of all rows of a workload."""

TURNS = {"L": 12, "M": 12, "C": 6, "R": 4}
"""Of a row, a round."""

CALLS = {"L": 50, "M": 5, "C": 1, "R": 1}
"""Of a step and of forward and backward alone, a turn."""


@dataclass(frozen=True)
class Row:
    """
    What a workload's step is timed with.

    :param str title: as the table has it.
    :param str module: of :mod:`benchmarks.peers`.
    :param options: of its ``start``.
    :param package: which it needs.
    """

    title: str
    module: str
    options: Callable[[], dict[str, Any]] = dict
    package: str | None = None

    def start(self, workload: Workload) -> Peer | None:
        """None where its package is not installed."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return None
        module = importlib.import_module(f".peers.{self.module}", __package__)
        return module.start(workload, **self.options())


def _pruned() -> dict[str, Any]:
    return {"pruning": aeb.MagnitudePruning(0.9)}


ROWS: dict[str, Row] = {
    "ours": Row("AEBKernel, SGHMC-SA, all latents", "ours"),
    "ours-pruned": Row("… 90 % pruned at every step", "ours", _pruned),
    "ours-three-point": Row("… three-point noise", "ours", partial(dict, noise="three-point")),
    "ours-compiled": Row("… compiled update", "ours", partial(dict, compile="update")),
    "ours-compiled-three-point": Row(
        "… both", "ours", partial(dict, compile="update", noise="three-point")
    ),
    "ours-all": Row("… gradient and update compiled", "ours", partial(dict, compile="all")),
    "ours-all-three-point": Row(
        "… and three-point noise", "ours", partial(dict, compile="all", noise="three-point")
    ),
    "ours-all-pruned": Row(
        "… gradient and update compiled, 90 % pruned",
        "ours",
        lambda: _pruned() | {"compile": "all"},
    ),
    "sgd": Row("torch.optim.SGD with momentum", "sgd"),
    "posteriors": Row("posteriors, sghmc", "posteriors_sghmc", package="posteriors"),
    "blackjax": Row("BlackJAX, sghmc (beside JAX alone)", "blackjax_sghmc", package="blackjax"),
    "traced": Row("a trace a step in Pyro, priors by autograd", "traced"),
    "authors": Row("the authors' manner", "authors"),
    "authors-pruned": Row("… 90 % pruned at every step", "authors", partial(dict, prune=0.9)),
}


@dataclass(frozen=True)
class Line:
    """One line of the table; None for what is not known, ``turns`` 0 for a package not there."""

    workload: str
    row: str
    turns: int
    ratio: float | None = None
    lower: float | None = None
    upper: float | None = None
    ms: float | None = None
    alone_ms: float | None = None
    operations: int | None = None
    update: int | None = None
    waits: int | None = None
    threads: int = THREADS


def measure(workload: Workload, names: Sequence[str], rounds: int, turns: int) -> list[Line]:
    """
    The lines of a workload. Its rows take turns, a few at a time.

    :param names: of :data:`ROWS`.
    :param int turns: of a row, a round.
    """
    warnings.simplefilter("error", aeb.CompileWarning)  # what was not compiled is not timed as if
    peers: dict[str, Peer] = {}
    counts: dict[str, Counts | None] = {}
    with as_in_mcmc():
        for name in names:
            peer = ROWS[name].start(workload)
            if peer is not None:
                peers[name], counts[name] = peer, count(peer)
        timings = {name: Timing() for name in peers}
        bar = tqdm(total=rounds * len(peers), desc=workload.name, unit="row")
        for _ in range(rounds):
            for name, peer in peers.items():
                bar.set_postfix_str(name)
                timings[name].take_turns(peer, turns, CALLS[workload.name])
                bar.update()
        bar.close()
    return [
        _line(workload.name, name, timings[name], counts[name])
        if name in peers
        else Line(workload.name, name, 0)
        for name in names
    ]


def _line(workload: str, name: str, timing: Timing, counts: Counts | None) -> Line:
    lower, ratio, upper = timing.ratio()
    ms, alone = timing.milliseconds()
    own = (None, None, None) if counts is None else counts
    return Line(workload, name, len(timing.step), ratio, lower, upper, ms, alone, *own)


def markdown(lines: dict[str, list[Line]]) -> str:
    """
    A table for every workload.

    :param lines: by workload.
    """
    parts = []
    for workload, own in lines.items():
        alone = next((line.alone_ms for line in own if line.alone_ms), None)
        beside = f"; forward + backward alone {alone:.3g} ms" if alone else ""
        parts += [
            f"**{workload}: {TITLES[workload]}**{beside}",
            "",
            "| step | ratio | quartiles | ms | turns | operations | of the update | waits |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *("| " + " | ".join(_cells(line)) + " |" for line in own),
            "",
        ]
    return "\n".join(parts)


def _cells(line: Line) -> list[str]:
    title = ROWS[line.row].title
    if not line.turns:
        return [title, "not installed", *[""] * 6]
    counts = ["" if n is None else str(n) for n in (line.operations, line.update, line.waits)]
    quartiles = f"{line.lower:.2f} – {line.upper:.2f}"
    return [title, f"{line.ratio:.2f}", quartiles, f"{line.ms:.3g}", str(line.turns), *counts]


def machine() -> str:
    """What the figures depend on."""
    device = "an accelerator" if torch.accelerator.is_available() else "no accelerator"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"pyro-ppl {pyro.__version__}"]
    for package in ("posteriors", "blackjax", "jax"):
        if importlib.util.find_spec(package) is not None:
            versions.append(f"{package} {importlib.metadata.version(package)}")
    cores = os.cpu_count()
    return f"{THREADS} threads on {cores} cores, {device}; {', '.join(versions)}."


def _write(folder: Path, workload: str, lines: Sequence[Line]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{workload}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Line.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)


def _read(folder: Path) -> dict[str, list[Line]]:
    """The lines of earlier runs, by workload."""
    found = {}
    for name in WORKLOADS:
        if (folder / f"{name}.csv").exists():
            with (folder / f"{name}.csv").open(encoding="utf-8") as file:
                found[name] = [_line_of(cells) for cells in csv.DictReader(file)]
    return found


def _line_of(cells: dict[str, str]) -> Line:
    text = {name: cells.pop(name) for name in ("workload", "row")}
    return Line(**text, **{name: _number(cell) for name, cell in cells.items()})


def _number(cell: str) -> Any:
    return None if not cell else float(cell) if "." in cell else int(cell)


def main(arguments: Sequence[str] | None = None) -> str:
    """The table, which is printed too."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.table", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"by default {ROUNDS}")
    parser.add_argument("--smoke", action="store_true", help="one round of two turns")
    parser.add_argument("--out", type=Path, help=OUT)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    lines = {} if options.out is None else _read(options.out)
    for name in options.workloads:
        rounds, turns = (1, 2) if options.smoke else (options.rounds, TURNS[name])
        lines[name] = measure(WORKLOADS[name](), options.rows, rounds, turns)
        if options.out is not None:
            _write(options.out, name, lines[name])
    text = markdown({name: lines[name] for name in WORKLOADS if name in lines})
    text += "\n" + machine() + "\n"
    if options.out is not None:
        (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    main()
