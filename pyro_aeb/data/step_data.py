# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""The data of every step of a chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_aeb.data.arguments import Batch
from pyro_aeb.data.loaders import ArgumentSource
from pyro_aeb.data.minibatches import ChainMinibatches, Minibatches


class StepData:
    """The batch of every step: the model's arguments, and the indices of its subsampled plates."""

    def __init__(
        self, arguments: ArgumentSource, minibatches: Minibatches | ChainMinibatches
    ) -> None:
        self.arguments = arguments
        self.minibatches = minibatches
        # None with a loader, which gives batches only. Read once: `sizes` may fetch a batch.
        self.cover = minibatches.cover if arguments.sizes is None else None

    def next(self) -> Batch:
        """Return the batch of the next step."""
        source = self.arguments
        return Batch(source.next(), self.minibatches.next(), source.per_chain)

    def state(self) -> dict[str, Any]:
        """Return the position in the data, as tensors and plain values."""
        return {"minibatches": self.minibatches.state(), "source": self.arguments.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a position returned by :meth:`state` for the same data."""
        self.minibatches.load(state["minibatches"])
        self.arguments.load(state["source"])

    def suspend(self) -> None:
        """Stop a loader's workers until the next batch is needed; the position is kept."""
        self.arguments.suspend()

    def close(self) -> None:
        """End a loader's epoch and stop its workers."""
        self.arguments.close()
