# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Sparse Bayesian networks for Pyro by adaptive empirical Bayes.

See :class:`AEBKernel` for the sampler and :class:`SSGL` for the prior.
"""

import importlib
from typing import TYPE_CHECKING, Any

import pyro_aeb.backend  # noqa: F401  (registers pyro.distributions.SSGL and the pyroapi backend)
from pyro_aeb import latents, nn, priors, transitions
from pyro_aeb.adaptation.gibbs import Gibbs
from pyro_aeb.adaptation.options import StochasticApproximation
from pyro_aeb.errors import (
    CheckpointError,
    CollapseWarning,
    CompileWarning,
    ModelError,
    NonFiniteError,
    RankError,
    SaveSizeWarning,
    TuningWarning,
)
from pyro_aeb.kernel.aeb_kernel import AEBKernel
from pyro_aeb.mcmc.api import MCMC
from pyro_aeb.nn.inference_groups import to_arviz
from pyro_aeb.priors import SSGL
from pyro_aeb.pruning import MagnitudePruning, ProbabilityPruning, UnitPruning
from pyro_aeb.schedules import (
    Constant,
    Cyclical,
    Geometric,
    Piecewise,
    Polynomial,
    PruningSchedule,
)
from pyro_aeb.storage.version import __version__
from pyro_aeb.storage.zarr_trace import open_trace
from pyro_aeb.transitions import SGHMC, SGLD

if TYPE_CHECKING:  # imported on request, below
    from pyro_aeb import diagnostics, testing
    from pyro_aeb.diagnostics import check, inclusion, intervals, models, select


def __getattr__(name: str) -> Any:
    """Import on request what takes half a second, for SciPy's tests."""
    if name in ("testing", "diagnostics"):
        return importlib.import_module(f"pyro_aeb.{name}")
    if name in ("check", "inclusion", "intervals", "models", "select"):
        return getattr(importlib.import_module("pyro_aeb.diagnostics"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, which an editor completes to."""
    return __all__


__all__ = [
    "MCMC",
    "SGHMC",
    "SGLD",
    "SSGL",
    "AEBKernel",
    "CheckpointError",
    "CollapseWarning",
    "CompileWarning",
    "Constant",
    "Cyclical",
    "Geometric",
    "Gibbs",
    "MagnitudePruning",
    "ModelError",
    "NonFiniteError",
    "Piecewise",
    "Polynomial",
    "ProbabilityPruning",
    "PruningSchedule",
    "RankError",
    "SaveSizeWarning",
    "StochasticApproximation",
    "TuningWarning",
    "UnitPruning",
    "__version__",
    "check",
    "diagnostics",
    "inclusion",
    "intervals",
    "latents",
    "models",
    "nn",
    "open_trace",
    "priors",
    "select",
    "testing",
    "to_arviz",
    "transitions",
]
