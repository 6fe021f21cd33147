# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Every file, test and module that a page or continuous integration names exists."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

import pyro_aeb

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(pyro_aeb.__file__).resolve().parent  # installed, it is not beside the tests
PROGRAM = ROOT / ".ci" / "run"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *([PROGRAM] if PROGRAM.exists() else []),
]
BUILT = {"docs/_build/html"}  # by the README's command
# The names of test files, and the functions in files of that name.
TESTS: dict[str, set[str]] = defaultdict(set)
for path in (ROOT / "tests").rglob("test_*.py"):
    TESTS[path.name].update(re.findall(r"^def (\w+)", path.read_text(encoding="utf-8"), re.M))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(page: Path) -> str:
    """The text of a page without addresses and links, which lead to other repositories, too."""
    return re.sub(r"https?://\S+|\]\([^)]*\)", "", page.read_text(encoding="utf-8"))


def exists(path: str) -> bool:
    """Whether a path, or a pattern of paths, names at least one file or folder."""
    folder, _, rest = path.partition("/")
    base = PACKAGE if folder == "pyro_aeb" else ROOT / folder
    return next(base.glob(rest), None) is not None if rest else base.exists()


def missing_paths(text: str) -> set[str]:
    found = re.findall(r"(?<![\w/.$-])(?:tests|tutorials|docs|pyro_aeb)/[\w./*-]*", text)
    return {path for path in found if path not in BUILT and not exists(path.rstrip("./"))}


def missing_tests(text: str) -> set[str]:
    """Bare names of test files, and of functions in them."""
    found = re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", text)
    return {
        f"{name}::{function}" if function else name
        for name, function in found
        if name not in TESTS or (function and function not in TESTS[name])
    }


def missing_modules(text: str) -> set[str]:
    return {
        module
        for module in re.findall(r"python3? -m (tests\.[\w.]+)", text)
        if not (ROOT / f"{module.replace('.', '/')}.py").is_file()
    }


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_what_a_page_names_exists(page: Path) -> None:
    text = read(page)
    assert missing_paths(text) | missing_tests(text) | missing_modules(text) == set()


def test_what_does_not_exist_is_found() -> None:
    text = "`tests/nowhere.py`, tests/*/test_nothing_*.py; `test_gone.py`, python -m tests.gone"
    assert missing_paths(text) == {"tests/nowhere.py", "tests/*/test_nothing_*.py"}
    assert missing_tests(text) == {"test_gone.py"}
    assert missing_tests("`test_kernel.py::test_gone`") == {"test_kernel.py::test_gone"}
    assert missing_modules(text) == {"tests.gone"}
    assert missing_paths("`pyro_aeb/kernel`, `docs/results/`, tests/conftest.py.") == set()
