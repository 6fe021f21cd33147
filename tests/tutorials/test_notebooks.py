# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The tutorials as notebooks: made from the scripts, and run at smoke size in a Jupyter kernel."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from notebook_runs import outputs, run_notebook
from tutorial_runs import TUTORIALS, require_packages

require_packages("h5netcdf", "matplotlib", "nbclient", "ipykernel", "scipy", "skglm", "sklearn")
sys.path.insert(0, str(TUTORIALS))
notebook = importlib.import_module("notebook")

# Name of a tutorial, and something that it prints last.
SCRIPTS = {
    "sparse_regression": "sparse_regression.png and trace.nc are in",
    "sparse_classifier": "sparse_classifier.png, trace.nc and network.pt are in",
    "state_space": "linear.png, hidden_markov.png, neural.png and table.md are in",
    "uci_uncertainty": "uci_uncertainty.png and the traces are in",
    "custom_kernel": "custom_kernel.png is in",
    "several_machines": "one chain on all of them",
}
VERDICTS = {"sparse_regression": 1}


def make(name: str, *options: str) -> Any:
    source = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    return notebook.make_notebook(source, list(options))


def test_all_tutorials_are_tested() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.py")} == {*SCRIPTS, "notebook"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_has_all_of_its_script(name: str) -> None:
    """Every statement, and every paragraph of comments."""
    cells = make(name).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    text = "\n".join(cell.source for cell in cells)
    source = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    written = ast.parse(code.replace("%matplotlib inline\n", ""))
    found = [ast.dump(node) for node in ast.walk(written) if isinstance(node, ast.stmt)]
    tree = ast.parse(source)
    (main,) = (x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "main")
    for node in [*tree.body[1:-1], *main.body[1:]]:
        if node is not main:
            assert found.count(ast.dump(node)) >= 1, ast.unparse(node)
    for line in re.findall(r"^ {0,4}# (?!--|Copyright|SPDX)(.+)$", source, re.M):
        assert line in text


def test_functions_come_before_the_cell_that_needs_them() -> None:
    text = "\n".join(cell.source for cell in make("sparse_regression").cells)
    order = [
        "# Sparse regression, start to finish",
        "## 2. The sampler",
        "args = parser.parse_args([])",
        "## 3. Data, and two runs",
        "## 4. What it found",
        "def told_the_three",
        "def print_signals",
        "\nprint_signals(",
        "## 7. The figure",
        "def draw",
        "figure.savefig(",
        "display(figure)",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


@pytest.mark.tutorial
@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_tutorials_run_as_notebooks(name: str, tmp_path: Path) -> None:
    done = run_notebook(make(name, "--smoke", "--out", str(tmp_path)), TUTORIALS)
    shown = outputs(done)
    assert SCRIPTS[name] in shown[-1]["text/plain"]
    tables = [data["text/html"] for data in shown if "<caption>" in data.get("text/html", "")]
    assert len(tables) == VERDICTS.get(name, 0)
    figures = re.findall(r"\w+(?=\.savefig\()", "\n".join(cell.source for cell in done.cells))
    assert not figures or name == "state_space" or any("image/png" in data for data in shown)
