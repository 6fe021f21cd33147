# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The shared harness (:mod:`common.harness`) with this experiment's methods, figures, settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from common import harness
from common.harness import Row, SettingsChanged, Task

from .methods import Protocol, run_one, settings_of

__all__ = ["FIGURES", "Replicates", "Row", "SettingsChanged", "Task", "run_all"]

FIGURES = (
    "mse mae mse_last precision_12 recall_12 precision_123 recall_123 selected beta1 beta2 beta3 "
    "coverage_beta1 coverage_beta2 coverage_beta3 coverage_zeros interval_length seconds "
    "ess rhat sigma delta collapsed"
).split()


def Replicates(path: Path) -> harness.Replicates:
    """The rows of this experiment finished so far, in the file ``path``."""
    return harness.Replicates(path, FIGURES)


def run_all(
    tasks: list[Task], protocol: Protocol, replicates: harness.Replicates, jobs: int
) -> list[tuple[Task, str]]:
    """
    Runs the (seed, method) pairs that are not finished; see :func:`common.harness.run_all`.

    :param Protocol protocol: sizes and lengths.
    """
    return harness.run_all(
        tasks,
        partial(run_one, protocol=protocol),
        partial(settings_of, protocol=protocol),
        replicates,
        jobs,
    )
