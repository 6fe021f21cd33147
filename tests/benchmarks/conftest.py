# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import timing

ROOT = Path(__file__).resolve().parents[2]
BESIDE = "long_run_beside"
RUN = pytest.StashKey["subprocess.Popen[str]"]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for the long run comes last."""
    items.sort(key=lambda item: BESIDE in getattr(item, "fixturenames", ()))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The long run takes a minute or two of one core, beside all other tests."""
    wanted = any(BESIDE in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        session.config.stash[RUN] = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.long_run"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    if (run := config.stash.get(RUN, None)) is not None:
        run.kill()
        run.communicate()


@pytest.fixture
def long_run_beside(request: pytest.FixtureRequest) -> subprocess.Popen[str]:
    """``long_run.py`` in a process of its own, which was started before the first test."""
    return request.config.stash[RUN]


@pytest.fixture
def as_in_mcmc() -> Iterator[None]:
    """Two threads and no validation, as pyro.infer.MCMC runs by default."""
    with timing.as_in_mcmc():
        yield
