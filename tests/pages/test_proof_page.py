# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What ``docs/proof.md`` says is printed is printed, its table is right, and its commands exist."""

import re
from pathlib import Path

import pytest
from page_programs import run_as_file

import pyro_aeb as aeb

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "proof.md").read_text("utf-8")


def code_block(marker):
    """The code block after ``<!-- marker -->``."""
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", PAGE, re.S).group(1)


def test_the_sampler_of_the_page(tmp_path, capsys):
    run_as_file(tmp_path / "my_sampler.py", code_block("runs"))
    assert capsys.readouterr().out == code_block("prints")


ROWS = re.findall(r"^\| `(SG\w+\(.*?\))` \| 1 \+ (\S+) × .*? \| (\S+) \|$", PAGE, re.M)


def test_the_table_has_rows():
    assert len(ROWS) == 3


@pytest.mark.parametrize(("call", "bias", "stable"), ROWS)
def test_the_table_of_samplers(call, bias, stable):
    report = aeb.testing.check_transition(eval(call, vars(aeb).copy()))
    assert report["bias of the variance"].result.startswith(f"+{bias} x step size")
    assert report["stability"].result == f"step size x curvature below {stable}"


def test_the_commands_name_tests_that_exist():
    paths = re.findall(r"tests/[\w/]+(?:\.py)?", PAGE)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
