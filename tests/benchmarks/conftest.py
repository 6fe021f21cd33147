# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import timing

LONG = "test_memory_is_bounded_over_many_steps"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test comes first, so that other processes' tests run beside it."""
    items.sort(key=lambda item: item.name != LONG)


@pytest.fixture(autouse=True)
def _one_thread_unless_timed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads for a figure; where nothing is timed they would wait for other tests' cores."""
    if not request.config.getoption("benchmark_enable"):
        monkeypatch.setattr(timing, "THREADS", 1)


@pytest.fixture
def as_in_mcmc() -> Iterator[None]:
    """Two threads and no validation, as pyro.infer.MCMC runs by default."""
    with timing.as_in_mcmc():
        yield
