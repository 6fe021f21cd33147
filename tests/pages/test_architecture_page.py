# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The page ``docs/architecture.md`` and its picture describe the package as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image  # comes with matplotlib
from test_architecture import KEPT_FROM, KNOW_HANDLERS, LEVEL, WINGS

import pyro_aeb

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(pyro_aeb.__file__).resolve().parent  # installed, it is not beside the tests
WING = "|".join(LEVEL)
# Files of the package, each perhaps with a name that it defines: `kernel/chain.py` (`Chain`).
FILES = re.findall(rf"`((?:{WING})(?:/\w+)?\.py)`(?: \(`(\w+)`\))?", PAGE)
ROWS = re.findall(r"^\| (\d) \| `(\w+)` \| .+ \| `([\w/]+\.py)` \|$", PAGE, re.M)
# The wing of what is added, by the first column of the table.
ADDED = {
    "a prior": "priors",
    "a sampler": "transitions",
    "a latent update": "latents",
    "a pruning rule": "pruning",
}


def test_the_wings_are_those_of_the_tests() -> None:
    assert {name: int(level) for level, name, _ in ROWS} == LEVEL
    assert len(ROWS) == len(LEVEL)
    assert [int(level) for level, _, _ in ROWS] == sorted(LEVEL.values(), reverse=True)


def test_a_wing_is_read_from_a_file_of_its_own() -> None:
    assert [name for _, name, file in ROWS if Path(file).with_suffix("").parts[0] != name] == []


@pytest.mark.parametrize(("file", "name"), sorted(set(FILES)))
def test_files_and_the_names_in_them_exist(file: str, name: str) -> None:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"^(class|def) {name}\b", text, re.M)


def test_every_folder_that_is_named_exists() -> None:
    folders = re.findall(r"`(?!pyro_aeb/`)(\w+)/`", PAGE)
    assert folders
    assert [folder for folder in folders if not (PACKAGE / folder).is_dir()] == []


def test_every_file_name_is_of_the_package_or_the_checkout() -> None:
    """No path escapes the checks above by its spelling."""
    paths = set(re.findall(r"`([\w./]+\.py)`", PAGE)) - {file for file, _ in FILES}
    assert {path for path in paths if not path.startswith(("tests/", "docs/"))} == set()


@pytest.mark.parametrize(("what", "wing"), ADDED.items())
def test_what_new_code_may_import(what: str, wing: str) -> None:
    (cell,) = re.findall(rf"^\| {what} \| .+ \| (.+) \|$", PAGE, re.M)
    lower = {name for name, level in LEVEL.items() if level < LEVEL[wing]}
    expected = lower - KEPT_FROM.get(wing, set()) - {"_version"}
    assert re.findall(r"`(\w+)`", cell) == sorted(expected)


def test_the_rules_are_those_of_the_tests() -> None:
    (names,) = re.findall(r"^- Only (.+) use Pyro's effect handlers", PAGE, re.M)
    assert set(re.findall(r"`(\w+)`", names)) == KNOW_HANDLERS
    assert set(KEPT_FROM) == {"adaptation", "pruning"}


def test_the_picture_has_the_wings_of_the_tests() -> None:
    with Image.open(DOCS / "images" / "architecture.png") as image:
        drawn = image.info["Levels"]
    expected = str([sorted(wings) for wings in WINGS])
    assert drawn == expected, "run python docs/images/architecture.py"
