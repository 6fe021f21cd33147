# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The page ``docs/troubleshooting.md`` has every error, warning and finding, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pyro_aeb
from pyro_aeb import errors

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(pyro_aeb.__file__).resolve().parent  # installed, it is not beside the tests
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def first_column(heading: str) -> set[str]:
    """The code of the first cells of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)`", section, re.M))


def test_every_class_of_the_package_is_there() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    named = set(re.findall(r"^\| \{py:class\}`~pyro_aeb\.errors\.(\w+)`", PAGE, re.M))
    assert named == classes


def test_every_finding_is_there() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (PACKAGE / "diagnostics").glob("*.py")
    )
    pattern = r'(?:check = |check, \w+ = |Finding\(\s*)"([\w :-]+)"'
    assert first_column("What `aeb.check` finds") == set(re.findall(pattern, source))


def test_the_messages_of_options_are_those_of_the_package() -> None:
    """Of the messages without values."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    for message in first_column("A first run"):
        if message.startswith(("adaptation", "MagnitudePruning")):
            assert message.removeprefix("MagnitudePruning ") in joined
