# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Errors and warnings: what was found, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, the first of them where there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{list(names[:most])}{more}"


class ModelError(ValueError):
    """The model, or the data given to it, cannot be sampled as it stands; the message says why."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run; the message says what to do."""


class NonFiniteError(ArithmeticError):
    """
    The potential or its gradient became infinite or NaN; the run stopped at that step.

    :param str message: what was found and what to do.
    :param int step: the step at which it was seen, counted from 1 at the start of the run; on an
        accelerator that may be some steps late.
    :param str site: the first site with a non-finite gradient, or None where all were finite.
    :param dict draws: the draws finished before, site name to tensor of shape (draws, ...).
    """

    def __init__(self, message: str, step: int, site: str | None, draws: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.step = step
        self.site = site
        self.draws = draws

    def __reduce__(self) -> tuple[object, ...]:
        # A tensor that is pickled between processes dies with the process that sent it.
        arrays = {name: draw.cpu().numpy() for name, draw in self.draws.items()}
        return _again, (type(self), str(self), self.step, self.site, arrays)


class RankError(RuntimeError):
    """Of several processes that run chains together, another one has failed or ended."""


def _again(
    kind: type[NonFiniteError], message: str, step: int, site: str | None, arrays: dict[str, Any]
) -> NonFiniteError:
    draws = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return kind(message, step, site, draws)


class CollapseWarning(UserWarning):
    """An inclusion probability delta has run into 0 or 1, where its update cannot leave it."""


class CompileWarning(UserWarning):
    """Something that was to be compiled runs as it is written."""


class SaveSizeWarning(UserWarning):
    """The draws that will be kept take a lot of memory."""
