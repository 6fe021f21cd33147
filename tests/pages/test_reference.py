# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The reference, ``docs/api``, has every public name once, and the table of contents every page."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyro_aeb

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {page.stem: page.read_text("utf-8") for page in sorted((DOCS / "api").glob("*.md"))}
DIRECTIVE = r"^\.\. auto(?:class|function|exception):: pyro_aeb\.(\S+)$"
DOCUMENTED = [name for text in PAGES.values() for name in re.findall(DIRECTIVE, text, re.M)]
SHOWN_MODULES = [
    name
    for text in PAGES.values()
    for name in re.findall(r"^\.\. automodule:: pyro_aeb\.(\S+)$", text, re.M)
]
MODULES = [
    "pyro_aeb",
    *(f"pyro_aeb.{page}" for page in PAGES if page not in ("pyro_aeb", "schedules", "storage")),
]
# Internal, though other wings import it; a type without documentation of its own.
LEFT_OUT = {"pruning.Pruner", "transitions.AnyTransition", "tuning.Tuner"}
# Met by programs, but not imported from a wing: what public functions return, a protocol, a helper.
ADDED = {
    "nn.by_draw.DrawPredictions",
    "nn.by_draw.Uncertainty",
    "nn.predictive.Moments",
    "nn.evaluation.Evaluation",
    "schedules.Schedule",
    "transitions.base.kinetic_temperature",
}


def resolve(name: str) -> Any:
    """The object of a dotted name in pyro_aeb, None where there is none."""
    if name.startswith("sklearn."):  # imported on request alone: it is an extra
        importlib.import_module("pyro_aeb.sklearn")
    return reduce(lambda value, part: getattr(value, part, None), name.split("."), pyro_aeb)


def public() -> dict[str, Any]:
    """The objects in ``__all__`` of the package and its wings, modules and plain values aside."""
    names = {
        f"{module}.{name}".removeprefix("pyro_aeb."): getattr(importlib.import_module(module), name)
        for module in MODULES
        for name in getattr(importlib.import_module(module), "__all__", ())
    }
    return {
        name: value
        for name, value in names.items()
        if callable(value) and not isinstance(value, ModuleType) and name not in LEFT_OUT
    }


def test_every_public_name_is_documented_once() -> None:
    objects = [resolve(name) for name in DOCUMENTED]
    assert len({id(value) for value in objects}) == len(objects)
    assert [name for name, value in public().items() if value not in objects] == []


def test_nothing_else_is_documented() -> None:
    assert set(DOCUMENTED) - public().keys() == ADDED


@pytest.mark.parametrize("name", DOCUMENTED + SHOWN_MODULES)
def test_docstrings_refer_to_public_names(name: str) -> None:
    """As Sphinx asks; what is internal is named as text, in double backticks."""
    objects = {id(resolve(documented)) for documented in DOCUMENTED}
    is_module = name in SHOWN_MODULES
    value = importlib.import_module(f"pyro_aeb.{name}") if is_module else resolve(name)
    docstrings = [inspect.getdoc(value) or ""]
    if isinstance(value, type):
        members = [member for key, member in vars(value).items() if not key.startswith("_")]
        docstrings += [inspect.getdoc(member) or "" for member in members]
    references = re.findall(r":\w+:`~?pyro_aeb\.([\w.]+)`", "\n".join(docstrings))
    internal = [
        target
        for target in references
        if target not in (*SHOWN_MODULES, *PAGES)
        and not {id(resolve(target)), id(resolve(target.rpartition(".")[0]))} & objects
    ]
    assert internal == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_about_one_module(page: str) -> None:
    title = PAGES[page].splitlines()[0]
    assert title == ("# pyro_aeb" if page == "pyro_aeb" else f"# pyro_aeb.{page}")
    importlib.import_module(title.removeprefix("# "))


def test_the_table_of_contents_has_every_page_once() -> None:
    entries = []
    for block in re.findall(
        r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.S
    ):
        entries += [line for line in block.splitlines() if line and not line.startswith(":")]
    listed = [
        page.relative_to(DOCS).with_suffix("").as_posix()
        for entry in entries
        for page in DOCS.glob(f"{entry.replace('**', '*')}.md")
    ]
    pages = [*DOCS.glob("*.md"), *(DOCS / "api").glob("*.md")]
    expected = {page.relative_to(DOCS).with_suffix("").as_posix() for page in pages} - {"index"}
    assert sorted(listed) == sorted(expected)
    assert all(list(DOCS.glob(f"{entry.replace('**', '*')}.md")) for entry in entries)


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(inspect.getfile(pyro_aeb)).read_text("utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    names = {alias.name for node in imports for alias in node.names}
    assert set(pyro_aeb.__all__) <= names


def test_completion_offers_public_names_alone() -> None:
    assert sorted(dir(pyro_aeb)) == sorted(pyro_aeb.__all__)
    assert {"check", "diagnostics", "testing"} <= set(dir(pyro_aeb))
    assert all(hasattr(pyro_aeb, name) for name in dir(pyro_aeb))


def test_the_package_lists_its_modules_of_public_names() -> None:
    modules = {name for name in pyro_aeb.__all__ if isinstance(getattr(pyro_aeb, name), ModuleType)}
    assert modules <= set(PAGES)
