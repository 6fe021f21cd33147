# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Every script under ``tutorials`` stands in the gallery, and continuous integration runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GALLERY = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
SCRIPTS = sorted(
    path.relative_to(ROOT / "tutorials").as_posix()
    for folder in ("", "reproduce")
    for path in (ROOT / "tutorials" / folder).glob("*.py")
)
LARGEST = 400 * 2**10  # bytes of a picture


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_gallery_has_the_scripts_command(script: str) -> None:
    assert f"tutorials/{script}" in GALLERY


@pytest.mark.parametrize("script", SCRIPTS)
def test_continuous_integration_runs_it(script: str) -> None:
    program = ROOT / ".ci" / "run"
    if not program.exists():
        pytest.skip("the tests run without the folder .ci beside them")
    text = program.read_text(encoding="utf-8")
    assert "-m tutorial" in text
    text += (ROOT / "README.md").read_text(encoding="utf-8")  # its command is one that CI reads
    stem = Path(script).stem
    assert re.search(rf"\b{stem}\b", text) or re.search(rf'["/]{stem}(\.py)?"', tutorial_tests())


def tutorial_tests() -> str:
    """The tests that run whole tutorials, with their parameters."""
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    marked = r"^@pytest\.mark\.tutorial\n.*?(?=\n\n\n|\Z)"
    return "\n".join(found for text in files for found in re.findall(marked, text, re.M | re.S))


def test_its_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"(?:image\} |\]\()([\w/]+\.png)", GALLERY)
    assert len(pictures) > 10
    sizes = {picture: (ROOT / "docs" / picture).stat().st_size for picture in pictures}
    assert {picture: size for picture, size in sizes.items() if size > LARGEST} == {}
