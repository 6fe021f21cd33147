# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Imports run one way.

The rule is read off the source, function bodies and ``if TYPE_CHECKING:`` included: a module that
needs to know another, if only for a type, depends on it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_aeb

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_aeb"

# Wings and top-level modules of pyro_aeb, from the foundation up. Each may import from the levels
# below its own, and files of one wing from one another; wings of one level do not know each other.
WINGS: tuple[set[str], ...] = (
    {"errors", "validation"},
    {"schedules", "latents", "data", "storage"},
    {"transitions", "priors"},
    {"model"},
    {"adaptation", "pruning", "tuning"},
    {"posterior"},
    {"kernel", "testing"},
    {"mcmc", "nn", "backend"},
    {"diagnostics"},
)
LEVEL = {name: level for level, wings in enumerate(WINGS) for name in wings}
# Whole models for other libraries' users. They use public names alone, as a program of a user does,
# and nothing imports them.
CLIENTS = {"sklearn"}
# Below, but none of its business: the latents' arithmetic knows sites as plain data only, and what
# is pruned depends on values alone.
KEPT_FROM = {
    "adaptation": {"transitions", "data.minibatches", "model.tracing"},
    "pruning": {"transitions", "priors"},
}
# The only ones that may know Pyro's effect handlers.
KNOW_HANDLERS = {"model", "posterior", "nn", "mcmc", "testing"}
HANDLERS = ("pyro.poutine", "pyro.handlers")

FILES = sorted(PACKAGE.rglob("*.py"))
TUTORIALS = sorted((ROOT / "tutorials").rglob("*.py"))


def wing(path: Path) -> str:
    """The wing or top-level module of pyro_aeb that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


OF_CLIENTS = [path for path in FILES if wing(path) in CLIENTS]


def imported_names(path: Path) -> Iterator[str]:
    """The fully qualified names that a file imports."""
    package = ("pyro_aeb", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from .x import y` in pyro_aeb/a/b.py is `from pyro_aeb.a.x import y`.
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def dotted_name(node: ast.AST) -> str:
    """``a.b.c`` for such an expression, the empty string for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (value := dotted_name(node.value)):
        return f"{value}.{node.attr}"
    return ""


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def relative_path(path: Path) -> str:
    return str(path.relative_to(ROOT))


def broken_rule(path: Path, name: str) -> str | None:
    """Which rule a file breaks that imports a name, in words; None where it breaks none."""
    own = wing(path)
    if not starts_with(name, "pyro_aeb"):
        return None
    other = (name.split(".") + [""])[1]
    where = f"{relative_path(path)} imports {name}"
    if other not in LEVEL:
        return f"{where}, expected the module that defines it: pyro_aeb itself imports everything"
    if other != own and LEVEL[other] >= LEVEL[own]:
        return (
            f"{where}: {own} stands on level {LEVEL[own]} of WINGS and may import from lower "
            f"levels only, and {other} stands on level {LEVEL[other]}"
        )
    for kept in KEPT_FROM.get(own, set()):
        if starts_with(name, f"pyro_aeb.{kept}"):
            return f"{where}, and KEPT_FROM keeps {own} from {kept}"
    return None


@pytest.mark.parametrize("path", FILES, ids=relative_path)
def test_module_has_a_place(path: Path) -> None:
    assert wing(path) in {*LEVEL, *CLIENTS, "__init__"}, f"give {wing(path)} its place in WINGS"


def test_a_module_has_one_place() -> None:
    assert sum(len(wings) for wings in WINGS) == len(LEVEL)


def test_the_house_is_small() -> None:
    """At most 20 wings and modules at the top, on at most 9 levels."""
    found = {wing(path) for path in FILES} - {"__init__"}
    assert found == set(LEVEL) | CLIENTS
    assert len(found) <= 20 and len(WINGS) <= 9


@pytest.mark.parametrize("path", [f for f in FILES if wing(f) in LEVEL], ids=relative_path)
def test_imports_run_one_way(path: Path) -> None:
    broken = [rule for name in imported_names(path) if (rule := broken_rule(path, name))]
    assert broken == [], "\n".join(broken)


def test_a_broken_rule_is_told() -> None:
    rule = broken_rule(PACKAGE / "data" / "loaders.py", "pyro_aeb.kernel.chain.Chain")
    assert rule is not None
    assert "data/loaders.py imports pyro_aeb.kernel.chain.Chain" in rule
    assert "level 1 of WINGS" in rule and "kernel stands on level 6" in rule
    kept = broken_rule(PACKAGE / "pruning" / "base.py", "pyro_aeb.priors.base.SpikeAndSlab")
    assert kept is not None and "KEPT_FROM keeps pruning from priors" in kept


@pytest.mark.parametrize(
    "path", [f for f in FILES if wing(f) not in KNOW_HANDLERS], ids=relative_path
)
def test_only_the_model_side_knows_handlers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [*imported_names(path), *(dotted_name(node) for node in ast.walk(tree))]
    found = [name for name in names if any(starts_with(name, handler) for handler in HANDLERS)]
    assert found == [], (
        f"{relative_path(path)} uses {found}; only {sorted(KNOW_HANDLERS)} may use {HANDLERS}"
    )


@pytest.mark.parametrize("path", [*TUTORIALS, *OF_CLIENTS], ids=relative_path)
def test_tutorials_and_clients_use_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            if path in OF_CLIENTS and starts_with(node.module, f"pyro_aeb.{wing(path)}"):
                continue
            if starts_with(node.module, "pyro_aeb"):
                assert node.module == "pyro_aeb", f"line {node.lineno}: {node.module} is not public"
                assert {alias.name for alias in node.names} <= set(pyro_aeb.__all__)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if starts_with(alias.name, "pyro_aeb"):
                    assert alias.name == "pyro_aeb", f"line {node.lineno}: {alias.name}"
                    aliases.add(alias.asname or alias.name)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted_name(node.value) in aliases
    }
    assert used <= set(pyro_aeb.__all__)
