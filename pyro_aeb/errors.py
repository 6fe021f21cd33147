# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Errors and warnings. Messages say what was found, what was expected, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm


def shorten(names: Sequence[str], most: int = 12) -> str:
    """Format names for an error message, at most the first ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{list(names[:most])}{more}"


def first_line(error: BaseException) -> str:
    """Format an error in one line, for a message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def inform(message: str) -> None:
    """Say something that asks for no action, on the standard error stream, beside progress bars."""
    tqdm.write(message, file=sys.stderr)


def is_domain_error(error: BaseException) -> bool:
    """
    Whether an error of a model says that its density does not exist at some values: a matrix that
    cannot be factored or inverted, or parameters or values outside of a distribution's domain.
    """
    text = str(error).lower()
    if isinstance(error, torch.linalg.LinAlgError) or type(error).__name__ == "LinAlgError":
        return True
    if isinstance(error, RuntimeError):
        return any(word in text for word in _MATRIX_WORDS)
    if isinstance(error, ValueError) and not isinstance(error, (ModelError, CheckpointError)):
        return any(word in text for word in _DOMAIN_WORDS)
    return isinstance(error, (ZeroDivisionError, OverflowError))


_MATRIX_WORDS = ("cholesky", "singular", "positive-definite", "positive definite", "linalg")
_DOMAIN_WORDS = (
    *("to satisfy the constraint", "within the support", "invalid values", "math domain error"),
    *("cholesky", "positive definite", "positive-definite"),
)


class ModelError(ValueError):
    """Raised when the model, or its data, cannot be sampled."""


class CheckpointError(ValueError):
    """Raised when a checkpoint is missing, damaged, or of another run."""


class NonFiniteError(ArithmeticError):
    """
    Raised when the potential or its gradient becomes infinite or NaN, which ends the run.

    :param str message: cause and remedy.
    :param int step: the step at which it was detected, from 1; on an accelerator that may be some
        steps later.
    :param str site: the first site with a non-finite gradient, None if all are finite.
    :param dict draws: the draws finished before, site name to tensor of shape (draws, ...).
    """

    in_data = False
    """Whether a number of the data is not finite."""

    def __init__(self, message: str, step: int, site: str | None, draws: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.step = step
        self.site = site
        self.draws = draws

    def __reduce__(self) -> tuple[object, ...]:
        # A tensor that is pickled between processes dies with the process that sent it.
        arrays = {name: draw.cpu().numpy() for name, draw in self.draws.items()}
        return _unpickle, (type(self), str(self), self.step, self.site, arrays)


class RankError(RuntimeError):
    """Raised when another process of a distributed run has failed."""


def _unpickle(
    kind: type[NonFiniteError], message: str, step: int, site: str | None, arrays: dict[str, Any]
) -> NonFiniteError:
    draws = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return kind(message, step, site, draws)


class TuningWarning(UserWarning):
    """Warns of what tuning in warm-up has found to be wrong and cannot mend."""


class CollapseWarning(UserWarning):
    """Warns that an inclusion probability delta has reached 0 or 1, which it cannot leave."""


class CompileWarning(UserWarning):
    """Warns that code could not be compiled, and runs as it is written."""


class SaveSizeWarning(UserWarning):
    """Warns that the draws of a run will take much memory."""
