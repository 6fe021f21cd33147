# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The package's metadata, files and commands agree with one another."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import tokenize
from pathlib import Path

import pytest

import pyro_aeb

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyro_aeb"
HEADER = (
    "# Copyright Contributors to the pyro_aeb project.\n# SPDX-License-Identifier: Apache-2.0\n"
)
SOURCES = sorted(
    path
    for folder in ("pyro_aeb", "tests", "tutorials", "docs")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_version_is_written_in_one_place() -> None:
    version = pyro_aeb.__version__
    literal = re.compile(rf"""["']{re.escape(version)}["']""")
    files = [*SOURCES, ROOT / "setup.cfg", ROOT / "pyproject.toml"]
    holders = [path for path in files if literal.search(path.read_text(encoding="utf-8"))]
    assert holders == [PACKAGE / "storage" / "version.py"]


def test_installed_version_is_this_one() -> None:
    try:
        installed = importlib.metadata.version("pyro_aeb")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pyro_aeb is imported from a folder in which it is not installed")
    assert installed == pyro_aeb.__version__


def test_changelog_knows_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[:2] == ["Unreleased", pyro_aeb.__version__]


def test_package_is_typed_and_says_so(setup_cfg: configparser.ConfigParser) -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert setup_cfg["options.package_data"]["pyro_aeb"].split() == ["py.typed"]


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_public_names_exist_once() -> None:
    assert len(set(pyro_aeb.__all__)) == len(pyro_aeb.__all__)
    assert [name for name in pyro_aeb.__all__ if not hasattr(pyro_aeb, name)] == []


def test_extras(setup_cfg: configparser.ConfigParser) -> None:
    extras = set(setup_cfg["options.extras_require"])
    assert {"test", "tutorials", "docs", "vision"} <= extras
    commands = "\n".join(
        (ROOT / name).read_text("utf-8")
        for name in ("README.md", "docs/installation.md", ".ci/run")
    )
    named = {
        extra
        for found in re.findall(r"(?<=\.)\[([a-z,]+)\]", commands)
        for extra in found.split(",")
    }
    assert named and named <= extras


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_license_header(path: Path) -> None:
    with tokenize.open(path) as file:
        text = file.read()
    if text.startswith("#!"):
        text = text.partition("\n")[2]
    assert not text or text.startswith(HEADER), f"expected the first lines to be\n{HEADER}"
