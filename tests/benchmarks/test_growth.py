# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The table of growth: that the command runs, and what it writes."""

from __future__ import annotations

import cProfile
import pstats
import sys
from pathlib import Path

import pyro
import pytest

from pyro_aeb.model.inspection import inspect_model

from . import growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_every_operation_of_every_axis_is_measured(monkeypatch, tmp_path):
    """In this process: one of its own would import all for each size."""
    monkeypatch.setattr(growth, "_in_process", lambda *each: growth._measure(*_of(*each)))
    text = growth.main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    for axis in growth.AXES.values():
        assert f"| **{axis.title}** |" in text
    for title in growth.OPERATIONS.values():
        assert text.count(f"| {title} |") == len(growth.AXES)


def _of(name, size, repeats):
    return growth.AXES[name], size, repeats


def calls(make, size):
    """How often the inspection of a model calls each function, of torch and of Python."""
    model, args = make(size)
    profile = cProfile.Profile()
    with pyro.validation_enabled(False), profile:
        inspect_model(model, args, {}, adapt=True)
    return {function: counts[1] for function, counts in pstats.Stats(profile).stats.items()}


@pytest.mark.parametrize("make", [growth.layers, growth.regressions])
def test_setup_calls_each_function_twice_as_often_for_twice_the_sites(make):
    calls(make, 2)  # first calls of functions that remember
    few, many = calls(make, 40), calls(make, 80)  # past the limit of gradients
    assert {f: n for f, n in many.items() if n > 2 * few.get(f, 0) + 20} == {}


def test_sizes_double():
    for axis in growth.AXES.values():
        for sizes in (axis.sizes, axis.smoke):
            assert sizes[0] * 4 == sizes[1] * 2 == sizes[2]


def test_the_peak_of_memory_is_what_a_call_adds():
    peak = growth.peak(lambda: bytearray(b"1") * 50_000_000)
    assert 40 < peak < 200


def test_the_page_has_the_table():
    folder = Path(__file__).resolve().parents[2] / "docs" / "results"
    assert "{include} growth/table.md" in (folder / "growth.md").read_text(encoding="utf-8")
    table = (folder / "growth" / "table.md").read_text(encoding="utf-8")
    for axis in growth.AXES.values():
        sizes = " / ".join(f"{size:,}" for size in axis.sizes)
        assert f"| **{axis.title}** | {sizes} |" in table
