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

# Modules and subpackages of pyro_aeb, from the foundation up. Each may import from the layers below
# its own, and files of one subpackage from one another; modules of one layer know nothing of each
# other.
LAYERS: tuple[set[str], ...] = (
    {"_version", "errors", "interrupts", "bits"},
    {"latents"},
    {"priors"},
    {"schedules", "structure", "arguments", "buffers", "groups", "units", "variables"}
    | {"settings", "trace_metadata"},
    {"ranks"},
    # What a step is made of, and what runs the model.
    {"transitions", "adaptation", "pruning", "dense", "minibatches", "health", "history", "look"}
    | {"sources", "noise", "fingerprint", "growing_zarr"},
    {"ssgl_rule", "probes", "options", "storage", "blow_ups", "data_checks", "store", "trace_file"},
    {"links", "learned"},
    {"likelihood"},
    {"model", "traced"},
    # Q, where a chain starts, and a chain.
    {"posterior"},
    {"target"},
    {"start", "update", "measures"},
    {"chain"},
    {"chain_state", "data_parallel"},
    {"beginning"},
    # Algorithm 1, and what stands on it.
    {"kernel", "checkpoint"},
    {"backend", "inference_data", "nn", "testing", "lanes", "recipes"},
    # Runs: where draws go, what is saved of a chain, and the chains of a run.
    {"run_record"},
    {"parallel", "distributed", "run_results"},
    {"mcmc"},
    {"diagnostics"},
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
# Below, but none of its business: a step takes a gradient and knows no model, and the latents'
# arithmetic knows sites as plain data only.
KEPT_FROM = {
    "transitions": {"priors", "structure"},
    "ssgl_rule": {"transitions", "minibatches", "look"},
}
# The only ones that may know Pyro's effect handlers.
KNOW_HANDLERS = {"look", "model", "likelihood", "nn", "mcmc", "testing"}
HANDLERS = ("pyro.poutine", "pyro.handlers")

FILES = sorted(PACKAGE.rglob("*.py"))
TUTORIALS = sorted((ROOT / "tutorials").rglob("*.py"))


def part(path: Path) -> str:
    """The module or subpackage of pyro_aeb that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
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


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for such an expression, the empty string for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (value := dotted(node.value)):
        return f"{value}.{node.attr}"
    return ""


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_module_has_a_place(path: Path) -> None:
    assert part(path) in {*LEVEL, "__init__"}, "give the new module its place in LAYERS"


def test_a_module_has_one_place() -> None:
    assert sum(len(layer) for layer in LAYERS) == len(LEVEL)


@pytest.mark.parametrize("path", [f for f in FILES if part(f) != "__init__"], ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    own = part(path)
    for name in imported(path):
        if not starts_with(name, "pyro_aeb"):
            continue
        components = name.split(".")
        assert len(components) > 1 and components[1] in LEVEL, (
            f"{name}: import from the module that defines a name, not from pyro_aeb itself, "
            "which imports everything"
        )
        other = components[1]
        assert other == own or LEVEL[other] < LEVEL[own], f"{own} imports {name}, not below it"
        assert other not in KEPT_FROM.get(own, set()), f"{own} imports {name}"


@pytest.mark.parametrize("path", [f for f in FILES if part(f) not in KNOW_HANDLERS], ids=relative)
def test_only_the_model_side_knows_handlers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [*imported(path), *(dotted(node) for node in ast.walk(tree))]
    found = [name for name in names if any(starts_with(name, handler) for handler in HANDLERS)]
    assert found == [], f"only {sorted(KNOW_HANDLERS)} may use {HANDLERS}"


@pytest.mark.parametrize("path", TUTORIALS, ids=relative)
def test_tutorials_use_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
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
        if isinstance(node, ast.Attribute) and dotted(node.value) in aliases
    }
    assert used <= set(pyro_aeb.__all__)
