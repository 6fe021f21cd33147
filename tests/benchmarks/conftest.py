# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import timing


@pytest.fixture
def as_in_mcmc() -> Iterator[None]:
    """Two threads and no validation, as pyro.infer.MCMC runs by default."""
    with timing.as_in_mcmc():
        yield
