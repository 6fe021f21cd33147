# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of notebooks, and what their cells show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def run_notebook(notebook: Any, folder: Path) -> Any:
    """Run a notebook in a Jupyter kernel, on one thread, and return it with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    nbformat.validate(notebook)
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    client = NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path})


def outputs(notebook: Any) -> list[dict[str, str]]:
    """Return what all cells show, without progress bars and warnings, by its kind."""
    shown: list[dict[str, str]] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stdout":
                shown.append({"text/plain": output.text})
            elif output.output_type in ("display_data", "execute_result"):
                shown.append(dict(output.data))
    return shown
