# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The programs on the page ``docs/samplers.md`` run, and its tables are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_programs import run_as_file
from samplers import transition_classes

import pyro_aeb as aeb

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^<!-- runs -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)


def test_every_sampler_has_a_row():
    rows = re.findall(r"^\| \{py:class\}`~pyro_aeb\.transitions\.(\w+)`", PAGE, re.M)
    assert {getattr(aeb.transitions, name) for name in rows} == set(transition_classes())


def test_draws_are_selected_and_weighted():
    """At a quarter of the page's draws."""
    program, count = re.subn(r"MCMC\(kernel, 400,", "MCMC(kernel, 100,", PROGRAMS[0])
    assert count == 1
    names: dict = {}
    exec(compile(program, "samplers.md", "exec"), names)
    # The posterior of mu is normal with precision 50 + 1/100 and mean 122.5 / 50.01.
    mean, sd = 122.5 / 50.01, 50.01**-0.5
    assert 0.45 < names["keep"].mean() < 0.55  # exploration=0.5
    sampled = names["sampled"]
    assert sampled.sizes["draw"] == names["keep"].sum()
    assert float(sampled.mean()) == pytest.approx(mean, abs=sd)
    assert names["weighted_mean"] == pytest.approx(mean, abs=sd)
    assert 1.0 < names["worth"] <= 200.0


def test_the_sampler_of_the_page(tmp_path, capsys):
    run_as_file(tmp_path / "mala.py", PROGRAMS[1])
    (printed,) = re.findall(r"^<!-- prints -->\n```text\n(.*?)^```$", PAGE, re.M | re.S)
    assert capsys.readouterr().out == printed


def test_the_tests_of_the_page_exist():
    for name in re.findall(r"`(test_\w+\.py)`", PAGE):
        assert (ROOT / "tests" / "transitions" / name).is_file(), name
    for path in re.findall(r"(tests/[\w/]+\.py)", PAGE):
        assert (ROOT / path).is_file(), path
