# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The figures of :mod:`.table`: their file, the tables that are made of them, and single ones as pages
name them.

``F ours cpu`` is the median time of a step of the row ``ours`` of workload F, in CPU time of one
thread, ``F ours / blackjax wall`` the median ratio to the row ``blackjax`` in wall time of two
threads.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rows import ROWS
from .timing import ratio
from .workloads import TITLES

FILE = "steps.csv"
CLOCKS = {"cpu": 1, "wall": 2}
"""The threads of each kind of figure."""

BOUNDS = (
    ("F", "ours-compiled", "blackjax", 1.3),
    ("F", "ours-traced", "ours", 0.5),
    ("L", "ours-compiled", "blackjax", 1.3),
    ("L", "ours-traced", "ours", 0.5),
    ("M", "ours-compiled", "blackjax", 1.05),
    ("M", "ours-compiled-three-point", "blackjax", 0.9),
    ("C", "ours-compiled", "alone", 1.08),
    ("R", "ours-compiled", "alone", 0.9),
)
"""The most that a step may take, in steps of another row, in CPU time of one thread."""
NAMES = {
    "alone": "forward + backward",
    "blackjax": "BlackJAX",
    "ours": "as written",
    "ours-compiled": "compiled",
    "ours-compiled-three-point": "compiled, three-point noise",
    "ours-traced": "traced, without a compiler",
}
"""Of their rows."""

UNKNOWN = "?"


@dataclass(frozen=True)
class Line:
    """
    A row's figures.

    :param int threads: 1 for CPU time, 2 for wall time.
    :param times: seconds a step, turn by turn; those of a workload's rows belong together.
    :param operations: of torch that a step calls; None where not known.
    :param waits: of a step for a value.
    :param load: load averages before and after the turns.
    :param note: why there are no times.
    """

    workload: str
    threads: int
    row: str
    times: tuple[float, ...] = ()
    operations: int | None = None
    waits: int | None = None
    load: tuple[float, ...] = ()
    note: str = ""


class Figures:
    """
    All lines.

    :param lines: in any order; of two with one place the later one holds.
    """

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self.lines = {(line.workload, line.threads, line.row): line for line in lines}

    def times(self, workload: str, threads: int, row: str) -> tuple[float, ...]:
        """Seconds a step, turn by turn; none where they are too few to say anything."""
        line = self.lines.get((workload, threads, row))
        return line.times if line is not None and len(line.times) > 1 else ()

    def ratio(self, workload: str, threads: int, row: str, other: str) -> tuple[float, ...]:
        """Quartiles, none where one of the two is missing."""
        times = [self.times(workload, threads, name) for name in (row, other)]
        return ratio(*times) if all(times) else ()

    def text(self, expression: str) -> str:
        """A figure as a page names it; :data:`UNKNOWN` where it was not measured."""
        workload, *rows, clock = expression.replace(" / ", " ").split()
        threads = CLOCKS[clock]
        if len(rows) == 2:
            found = self.ratio(workload, threads, *rows)
            return ratio_text(found[1]) if found else UNKNOWN
        times = self.times(workload, threads, *rows)
        return time_text(statistics.median(times)) if times else UNKNOWN


def time_text(seconds: float) -> str:
    """Three digits, in microseconds or milliseconds."""
    value, unit = (1e6 * seconds, "µs") if seconds < 1e-3 else (1e3 * seconds, "ms")
    return f"{value:.0f} {unit}" if value >= 1e3 else f"{value:.3g} {unit}"


def ratio_text(value: float) -> str:
    """Two decimals, or three digits."""
    return f"{value:.2f}" if 0.1 <= value < 10 else f"{value:.3g}"


# -- the file ------------------------------------------------------------------------------------


def read(folder: Path) -> Figures:
    """Those of earlier runs."""
    path = folder / FILE
    if not path.exists():
        return Figures()
    with path.open(encoding="utf-8", newline="") as file:
        return Figures([_line(cells) for cells in csv.DictReader(file)])


def _line(cells: dict[str, str]) -> Line:
    counts = [int(cells[name]) if cells[name] else None for name in ("operations", "waits")]
    times = tuple(float(value) for value in cells["seconds"].split())
    load = tuple(float(value) for value in cells["load"].split())
    place = cells["workload"], int(cells["threads"]), cells["row"]
    return Line(*place, times, *counts, load, cells["note"])


def write(folder: Path, figures: Figures) -> None:
    """All of them, anew."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("w", encoding="utf-8", newline="") as file:
        names = ["workload", "threads", "row", "seconds", "operations", "waits", "load", "note"]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for line in figures.lines.values():
            times = " ".join(f"{value:.5g}" for value in line.times)
            load = " ".join(f"{value:.2f}" for value in line.load)
            counts = ["" if n is None else n for n in (line.operations, line.waits)]
            place = [line.workload, line.threads, line.row]
            writer.writerow([*place, times, *counts, load, line.note])


# -- the tables ----------------------------------------------------------------------------------

HEAD = """\
| step | CPU, one thread | / forward + backward | / BlackJAX | wall, two threads \
| / forward + backward | / BlackJAX | operations | waits |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def tables(figures: Figures) -> str:
    """A table for every workload."""
    parts = []
    for workload, title in TITLES.items():
        own = [line for line in figures.lines.values() if line.workload == workload]
        if own:
            rows = [row for row in ROWS if any(line.row == row for line in own)]
            cells = [_cells(figures, workload, row) for row in rows]
            body = "\n".join(f"| {' | '.join(row)} |" for row in cells)
            parts.append(f"**{workload}: {title}**\n\n{HEAD}\n{body}\n\n{_load(own)}")
    return "\n\n".join(parts) or "No run of this command is recorded."


def _cells(figures: Figures, workload: str, row: str) -> list[str]:
    cells, counts = [ROWS[row].title], ["", ""]
    for threads in CLOCKS.values():
        line = figures.lines.get((workload, threads, row))
        times = figures.times(workload, threads, row)
        if line is None or not times:
            cells += [line.note if line is not None else "", "", ""]
            continue
        cells.append(time_text(statistics.median(times)))
        cells += [_ratio(figures.ratio(workload, threads, row, x)) for x in ("alone", "blackjax")]
        if threads == 1:
            counts = ["" if n is None else str(n) for n in (line.operations, line.waits)]
    return [*cells, *counts]


def _ratio(found: tuple[float, ...]) -> str:
    if not found:
        return ""
    low, middle, high = map(ratio_text, found)
    return f"{middle} ({low} – {high})"


def _load(lines: Sequence[Line]) -> str:
    """Turns, and load averages."""
    words = []
    for threads, name in ((1, "one thread"), (2, "two threads")):
        own = [line for line in lines if line.threads == threads and line.times]
        if own:
            turns, loads = max(len(line.times) for line in own), own[0].load
            words.append(f"{name}: {turns} turns, {' to '.join(f'{x:.1f}' for x in loads)}")
    return f"Load average, {'; '.join(words)}." if words else ""


def bounds(figures: Figures) -> str:
    """What was asked for beside what was measured; bold where it is above."""
    lines = ["| step | beside | at most | measured | wall, two threads |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for workload, row, other, most in BOUNDS:
        found = [figures.ratio(workload, threads, row, other) for threads in (1, 2)]
        cells = [_ratio(own) or UNKNOWN for own in found]
        if found[0] and found[0][1] > most:
            cells[0] = f"**{cells[0]}**"
        place = f"{workload}, {NAMES[row]} | {NAMES[other]}"
        lines.append(f"| {place} | {most:g} | {' | '.join(cells)} |")
    return "\n".join(lines)
