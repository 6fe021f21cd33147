# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Programs on a machine without a C++ compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def run_without_compiler(program: str, cache: Path) -> str:
    """
    Run a program, which may import any test module, and return what it prints.

    :param Path cache: an empty folder for the compiler's cache, so that nothing compiled before is
        found.
    """
    environment = {
        **os.environ,
        "CXX": "/nonexistent",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in TESTS.iterdir()),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
