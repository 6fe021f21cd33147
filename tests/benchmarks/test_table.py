# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The table of all rows: that the command runs, what it writes, and that pages have it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from . import figures, pages, rows, table
from .figures import Figures, Line
from .peers import numpyro_hmcecs
from .rows import ROWS

SLOW = ("jax", "blackjax", "numpyro")
"""Packages that compile."""

SMOKE = ["--smoke", "--here", "--threads", "1"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (row.compiled or row.package in SLOW))
        for name, row in ROWS.items()
    ],
)
def test_every_row_runs_and_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(numpyro_hmcecs, "TRAJECTORIES", 2)
    workload = ROWS[name].workloads[0]
    arguments = [*SMOKE, "--workloads", workload, "--rows", name, "--out", str(tmp_path)]
    text = table.main(arguments)
    assert f"| {ROWS[name].title} |" in text
    (line,) = figures.read(tmp_path).lines.values()
    assert (line.workload, line.threads, line.row) == (workload, 1, name)
    assert (line.note, len(line.times)) == (("", 2) if ROWS[name].installed else (NOT, 0))


NOT = "not installed"


def test_a_row_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    text = table.main([*SMOKE, "--workloads", "F", "--rows", "posteriors", "alone"])
    assert "| posteriors | not installed |" in text
    assert text.count(NOT) == 1


def test_a_row_that_fails_leaves_a_note(monkeypatch, capsys):
    def fail(workload):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(ROWS, "sgd", rows.Row("a row", fail))
    text = table.main([*SMOKE, "--workloads", "F", "--rows", "sgd", "alone"])
    assert "| a row | RuntimeError: no such luck |" in text
    assert "no such luck" in capsys.readouterr().err


def test_each_kind_of_figure_has_a_process_of_its_own(tmp_path, monkeypatch):
    processes, filled = [], []

    def run(command, env, **options):
        processes.append((command[:3], env["OMP_NUM_THREADS"]))
        table.main(command[3:])

    monkeypatch.setattr(table.subprocess, "run", run)
    monkeypatch.setattr(table.os, "sched_setaffinity", lambda *arguments: None, raising=False)
    monkeypatch.setattr(table.pages, "fill", filled.append)
    names = ["--smoke", "--workloads", "F", "--rows", "alone", "sgd", "--out", str(tmp_path)]
    table.main([*names, "--pages"])
    command = [sys.executable, "-m", "tests.benchmarks.table"]
    assert processes == [(command, "1"), (command, "2")]
    found = figures.read(tmp_path)
    assert list(found.lines) == [("F", n, row) for n in (1, 2) for row in ("alone", "sgd")]
    assert all(len(line.times) == len(line.load) == 2 for line in found.lines.values())
    assert filled == [tmp_path]
    assert "torch" in (tmp_path / "machine.md").read_text(encoding="utf-8")


def test_a_process_for_one_thread_has_one():
    one, two = table.environment(1), table.environment(2)
    assert one["OMP_NUM_THREADS"] == "1"
    assert "--xla_cpu_multi_thread_eigen=false" in one["XLA_FLAGS"]
    assert two["OMP_NUM_THREADS"] == "2"
    assert one["TORCHINDUCTOR_CACHE_DIR"] != two["TORCHINDUCTOR_CACHE_DIR"]


# -- the figures ---------------------------------------------------------------------------------

LINES = [
    Line("F", 1, "alone", (1e-4, 2e-4, 1e-4), 14, 0, (0.25, 1.5)),
    Line("F", 1, "ours-compiled", (3e-5, 9e-5, 4e-5), 2, 0, (0.25, 1.5)),
    Line("F", 1, "blackjax", (2e-5, 2e-5, 2e-5), load=(0.25, 1.5)),
    Line("F", 2, "ours-compiled", (0.002, 0.002), load=(0.5, 0.5)),
    Line("F", 2, "blackjax", note=NOT),
]


def test_figures_come_back_from_their_file(tmp_path):
    figures.write(tmp_path, Figures(LINES))
    assert figures.read(tmp_path).lines == Figures(LINES).lines
    assert figures.read(tmp_path / "none").lines == {}


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("F ours-compiled cpu", "40 µs"),
        ("F ours-compiled wall", "2 ms"),
        ("F ours-compiled / blackjax cpu", "2.00"),  # of 1.5, 4.5, 2
        ("F ours-compiled / alone cpu", "0.40"),
        ("F ours-compiled / blackjax wall", "?"),
        ("F sgd cpu", "?"),
    ],
)
def test_a_figure_is_a_median_over_turns(expression, text):
    assert Figures(LINES).text(expression) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.04e-7, "0.704 µs"), (3.96e-4, "396 µs"), (5.577e-3, "5.58 ms"), (1.2, "1200 ms")],
)
def test_times_have_three_digits(seconds, text):
    assert figures.time_text(seconds) == text


def test_tables_have_both_kinds_of_figures_and_the_load():
    text = figures.tables(Figures(LINES))
    assert "torch | 100 µs | 1.00 (1.00 – 1.00) | 5.00 (5.00 – 7.50) |" in text
    assert "| AEBKernel, compiled | 40 µs |" in text
    assert "| BlackJAX | 20 µs | 0.20 (0.15 – 0.20) | 1.00 (1.00 – 1.00) | not installed |" in text
    assert "one thread: 3 turns, 0.2 to 1.5; two threads: 2 turns, 0.5 to 0.5." in text


def test_what_is_above_its_bound_is_bold():
    text = figures.bounds(Figures(LINES))
    assert "| F, compiled | BlackJAX | 1.3 | **2.00 (1.75 – 3.25)** | ? |" in text
    assert text.count("**") == 2


# -- the pages -----------------------------------------------------------------------------------


def test_a_page_is_filled_between_its_marks(tmp_path):
    figures.write(tmp_path, Figures(LINES))
    (tmp_path / "machine.md").write_text("a machine\n", encoding="utf-8")
    text = (
        "It takes <!-- speed: F ours-compiled cpu -->?<!-- /speed -->, of <!-- speed: noise.md -->"
        "\n\nkept\n\n<!-- /speed --> and <!-- speed: machine.md --><!-- /speed -->.\n"
    )
    once = pages.filled(text, tmp_path)
    assert once == (
        "It takes <!-- speed: F ours-compiled cpu -->40 µs<!-- /speed -->, of "
        "<!-- speed: noise.md -->\n\nkept\n\n<!-- /speed --> and "
        "<!-- speed: machine.md -->\n\na machine\n\n<!-- /speed -->.\n"
    )
    assert pages.filled(once, tmp_path) == once


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_pages_have_the_figures_of_the_last_run(page):
    """If not: ``python -m tests.benchmarks.pages docs/results/speed``."""
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- speed:") == text.count("<!-- /speed -->") > 0
    # A comment that begins a line would make the line HTML.
    assert re.findall(r"^ *<!-- speed: (?!tables|bounds|\w+\.md).*", text, re.M) == []
    assert pages.filled(text, Path(pages.ROOT / "docs" / "results" / "speed")) == text
