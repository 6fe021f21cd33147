# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Docstrings begin with a verb or a noun, and functions fit a screen."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "pyro_aeb").rglob("*.py"))
TUTORIALS = sorted((ROOT / "tutorials").rglob("*.py"))

# A summary such as "What a run keeps" or "Of every chain, the state" names its subject by a clause.
FIRST_WORDS = re.compile(r"(What|Where|Of|By|As|That|Given)\b")
MAX_LINES = 45

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented_nodes(tree: ast.Module) -> Iterator[Documented]:
    """Yield a module and its classes, functions and methods, nested ones included."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Documented))


def wrong_summaries(source: str) -> list[str]:
    """Return ``line: summary`` of every docstring that begins with one of FIRST_WORDS."""
    found = []
    for node in documented_nodes(ast.parse(source)):
        docstring = ast.get_docstring(node)
        if docstring and FIRST_WORDS.match(docstring):
            found.append(f"{node.body[0].lineno}: {docstring.splitlines()[0]}")
    return found


def long_functions(source: str) -> list[str]:
    """Return ``line: name`` and the length of every function body of more than MAX_LINES lines."""
    found = []
    for node in documented_nodes(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if length > MAX_LINES:
            found.append(f"{node.lineno}: {node.name}, {length} lines")
    return found


RULES = {
    "summaries": (wrong_summaries, [*PACKAGE, *TUTORIALS]),
    "functions": (long_functions, PACKAGE),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_style(rule: str) -> None:
    find, files = RULES[rule]
    offenders = [
        f"{path.relative_to(ROOT)}:{offender}"
        for path in files
        for offender in find(path.read_text(encoding="utf-8"))
    ]
    assert offenders == [], "\n".join(["", *offenders])


def test_wrong_summaries_are_found() -> None:
    source = '''
"""Asynchronous reads."""
class A:
    """
    What a run keeps.

    :param int x: a number.
    """
    def f(self):
        r"""Of :math:`x`, the square."""
        async def g():
            """Offset of a site."""
'''
    assert wrong_summaries(source) == ["4: What a run keeps.", "10: Of :math:`x`, the square."]


@pytest.mark.parametrize("docstring", ["", '    """A docstring.\n\n    Two lines more.\n    """\n'])
def test_long_functions_are_found(docstring: str) -> None:
    def source(lines: int) -> str:
        return f"def f():\n{docstring}" + "    x = 1\n" * lines

    assert long_functions(source(MAX_LINES)) == []
    assert long_functions(source(MAX_LINES + 1)) == ["1: f, 46 lines"]
