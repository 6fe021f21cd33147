# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Programs of the pages, run as a reader's own file would be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def run_as_file(path: Path, program: str) -> None:
    """
    Run a program from a file, in this process: starting another takes seconds. What it defines can
    be pickled while it runs, as in a main program.
    """
    path.write_text(program, "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
