# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The page ``docs/equations.md`` and the functions that it names agree."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "equations.md"
NUMBERS = ["(1)", "(2)", "(3a)", "(3b)", "(4)", "(5)", "(6)", "(7)", "(8)", "(9)", "(10)"]


def table_rows() -> Iterator[tuple[str, str, list[str]]]:
    """Number, formula and functions of every row of the table."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if re.match(r"\| \(\d", line):
            number, formula, functions = (cell.strip() for cell in line.strip("| ").split(" | "))
            yield number, formula, re.findall(r"`(pyro_aeb[\w.]+)`", functions)


ROWS = list(table_rows())
PAIRS = [(number, function) for number, _, functions in ROWS for function in functions]


def resolve(name: str) -> Any:
    """The object of a fully qualified name."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not name.startswith(f"{error.name}"):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name} is in no module")


def test_every_equation_has_one_row() -> None:
    assert [number for number, _, _ in ROWS] == NUMBERS


def test_every_row_has_a_formula_and_a_function() -> None:
    assert [number for number, formula, _ in ROWS if "$" not in formula] == []
    assert [number for number, _, functions in ROWS if not functions] == []


def test_no_function_codes_two_equations() -> None:
    functions = [function for _, function in PAIRS]
    assert len(functions) == len(set(functions))


@pytest.mark.parametrize(("number", "name"), PAIRS)
def test_function_exists_and_bears_the_number(number: str, name: str) -> None:
    function = resolve(name)
    assert callable(function)
    assert number in (function.__doc__ or ""), f"the docstring of {name} does not mention {number}"
