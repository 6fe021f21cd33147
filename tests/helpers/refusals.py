# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Runs on bad input, and checks of their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
from models import P, linear_data
from pyro.infer import MCMC

from pyro_aeb import SGLD, AEBKernel, ModelError, StochasticApproximation

REFUSALS: Counter[str] = Counter()
"""Number of bad inputs that raised the expected error, by type; printed at the end of a run."""

X, Y = linear_data()
ADAPTATION = StochasticApproximation(0.3)


def count_refusal(error: BaseException) -> None:
    """Count an expected error."""
    REFUSALS[type(error).__name__] += 1


@contextmanager
def raises_with(*parts: str, error: type[Exception] = ModelError) -> Iterator[Any]:
    """Require an error whose message contains these parts, in this order."""
    with pytest.raises(error) as info:
        yield info
    rest = str(info.value)
    for part in parts:
        assert part in rest, f"{part!r} is missing (or out of order) in: {info.value}"
        rest = rest[rest.index(part) + len(part) :]
    count_refusal(info.value)


def run_model(model, *args, transition=None, draws=3, kwargs=None, **options) -> MCMC:
    """Make a short run of MCMC with its defaults, validation off."""
    options = {"adaptation": ADAPTATION, "seed": 0, **options}
    mcmc = MCMC(
        AEBKernel(model, transition or SGLD(1e-3), **options), draws, 0, disable_progbar=True
    )
    mcmc.run(*args, **(kwargs or {}))
    return mcmc


def run_dense_model(observe, **options):
    """Run a model of P dense weights and ``observe(w)``."""

    def model():
        observe(pyro.sample("w", dist.Normal(0.0, 1.0).expand([P]).to_event(1)))

    return run_model(model, **options)
