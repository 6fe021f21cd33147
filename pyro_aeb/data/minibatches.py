# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The batch of every step, and the indices of the model's subsampled plates in it.

A permutation is drawn once an epoch and cut into batches of exactly n; the N mod n indices left
over are dropped. (Pyro's own plate shuffles all N indices at every step.) Or every batch is n
independent draws with replacement. The gradient (2) is unbiased in both cases; its variance is
smaller with a permutation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_aeb.data.arguments import Batch
from pyro_aeb.data.loaders import ArgumentSource
from pyro_aeb.data.ranks import ALONE, Ranks
from pyro_aeb.errors import ModelError
from pyro_aeb.validation import choice

Order = Literal["permutation", "replacement"]
ORDERS = ("every datum at most once an epoch", "independent draws")
"""Meanings of the orders, for error messages."""

LONG = 2000
"""Data from which on a permutation is saved as the random state that it was drawn from."""


class Minibatches:
    """
    Indices of all plates at every step.

    :param plates: plate name to (size N, subsample size n). A plate with n = N has all indices in
        order, at no cost a step.
    :param torch.Generator generator: of random numbers, None for torch's global one.
    :param Ranks ranks: processes with the same generator that share every minibatch: it has n data
        a rank, of which this object returns its own n.
    :raises ValueError: if ``order`` is neither.
    """

    def __init__(
        self,
        plates: Mapping[str, tuple[int, int]],
        order: Order,
        device: torch.device,
        generator: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        choice("minibatches", order, Order, *ORDERS)
        self._ranks = ranks
        self._order = order
        self._device = device
        self._generator = generator
        self._plates = {name: pair for name, pair in plates.items() if pair[1] < pair[0]}
        self._epochs: dict[str, Tensor] = {}
        self._origins: dict[str, dict[str, Any]] = {}  # from which an epoch can be drawn again
        self._starts: dict[str, int] = {}
        self._indices = {
            name: torch.arange(size, device=device)
            for name, (size, batch) in plates.items()
            if batch >= size
        }

    @property
    def partial(self) -> frozenset[str]:
        """The plates that take a part of their data at a step."""
        return frozenset(self._plates)

    @property
    def whole(self) -> dict[str, Tensor]:
        """The indices of the plates that take all of their data at a step."""
        return {n: indices for n, indices in self._indices.items() if n not in self._plates}

    def first(self) -> dict[str, Tensor]:
        """Return the first indices of every plate, without drawing a random number."""
        first = dict(self._indices)
        for name, (_, batch) in self._plates.items():
            first[name] = torch.arange(batch, device=self._device)
        return first

    def next(self) -> dict[str, Tensor]:
        """Return the indices of the next step, plate name to tensor of shape (n,)."""
        world, rank = self._ranks.world, self._ranks.rank
        for name, (size, batch) in self._plates.items():
            count = batch * world
            if self._order == "replacement":
                indices = torch.randint(
                    size, (count,), generator=self._generator, device=self._device
                )
            else:
                indices = self._next_of_permutation(name, size, count)
            self._indices[name] = indices if world == 1 else indices[batch * rank :][:batch]
        return self._indices

    def ahead(self) -> tuple[dict[str, Sequence[Tensor]], Iterator[None]]:
        """
        Return the indices of the next steps of every plate that takes a part of its data, none so
        far; and an iterator that draws one step's after the other.
        """
        if self._order == "permutation" and self._ranks.world == 1:
            cuts = {name: Cuts(batch) for name, (_, batch) in self._plates.items()}
            return {**cuts}, self._cut_ahead(cuts)
        return _draw_ahead(self)

    def _cut_ahead(self, cuts: Mapping[str, Cuts]) -> Iterator[None]:
        plates = [(name, *sizes, cuts[name].append) for name, sizes in self._plates.items()]
        while True:
            for name, size, count, append in plates:
                append(self._advance(name, size, count))
            yield

    def _next_of_permutation(self, name: str, size: int, count: int) -> Tensor:
        epoch, start = self._advance(name, size, count)
        return epoch[start : start + count]

    def _advance(self, name: str, size: int, count: int) -> tuple[Tensor, int]:
        """Return the permutation of the next step, and the first place of the step's batch."""
        start = self._starts.get(name, size)
        if start + count > size:
            start = 0
            if size >= LONG:
                self._note_origin(name, size)
            self._epochs[name] = torch.randperm(
                size, generator=self._generator, device=self._device
            )
        self._starts[name] = start + count
        return self._epochs[name], start

    def _note_origin(self, name: str, size: int) -> None:
        """Note the random state that a permutation is drawn from, which is the smaller one."""
        generator = self._generator
        if generator is None and self._device.type == "cpu":
            generator = torch.default_generator
        if generator is not None:
            origin = {"device": str(generator.device), "size": size}
            self._origins[name] = {**origin, "random": generator.get_state()}

    def cover(self) -> Iterator[dict[str, Tensor]]:
        """
        Yield batches that hold every datum equally often, in order, so that the mean of their
        gradients is that of the whole data set: N / n of them, or lcm(N, n) / n if n does not
        divide N. Draws no random number.

        :raises ModelError: if more than one plate takes a part of its data.
        """
        if len(self._plates) > 1:
            raise ModelError(
                f"the transition asks for the whole data set, and plates {sorted(self._plates)} "
                "each take a part of theirs, expected one such plate; give all but one "
                "subsample_size=None"
            )
        if not self._plates:
            yield self.first()
        for name, (size, batch) in self._plates.items():
            data = torch.arange(math.lcm(size, batch), device=self._device).remainder_(size)
            for indices in data.split(batch):
                yield {**self._indices, name: indices}

    def state(self) -> dict[str, Any]:
        """
        Return the current permutations, of many data the random states that they were drawn from,
        and the positions in them.
        """
        epochs = {n: epoch for n, epoch in self._epochs.items() if n not in self._origins}
        return {"epochs": epochs, "origins": dict(self._origins), "starts": dict(self._starts)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`, without that of the generator."""
        self._epochs = {n: epoch.to(self._device) for n, epoch in state["epochs"].items()}
        self._origins = dict(state.get("origins", {}))  # version 0.1 saved all permutations
        for name, origin in self._origins.items():
            device = torch.device(origin["device"])
            generator = torch.Generator(device)
            generator.set_state(origin["random"])
            epoch = torch.randperm(origin["size"], generator=generator, device=device)
            self._epochs[name] = epoch.to(self._device)
        self._starts = dict(state["starts"])


class Cuts(Sequence[Tensor]):
    """
    Batches of consecutive indices of permutations, known by their places: a tensor is made only of
    those that are asked for.

    :param int size: of a batch.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._places: list[tuple[Tensor, int]] = []
        self.append = self._places.append

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, k: Any) -> Any:
        epoch, start = self._places[k]
        return epoch[start : start + self._size]

    def addresses(self) -> list[int]:
        """Return the addresses of the batches' first indices."""
        return [epoch.data_ptr() + start * epoch.element_size() for epoch, start in self._places]


def _draw_ahead(
    minibatches: Minibatches | ChainMinibatches,
) -> tuple[dict[str, Sequence[Tensor]], Iterator[None]]:
    columns: dict[str, list[Tensor]] = {name: [] for name in minibatches.partial}

    def draw() -> Iterator[None]:
        while True:
            indices = minibatches.next()
            for name, column in columns.items():
                column.append(indices[name])
            yield

    return {**columns}, draw()


class ChainMinibatches:
    """Indices of all plates at every step of several chains, each with minibatches of its own."""

    def __init__(self, minibatches: Sequence[Minibatches]) -> None:
        self._minibatches = tuple(minibatches)

    @property
    def partial(self) -> frozenset[str]:
        """The plates that take a part of their data at a step."""
        return self._minibatches[0].partial

    @property
    def whole(self) -> dict[str, Tensor]:
        """The indices of the plates that take all of their data at a step."""
        return self._minibatches[0].whole

    def ahead(self) -> tuple[dict[str, Sequence[Tensor]], Iterator[None]]:
        """See :meth:`Minibatches.ahead`."""
        return _draw_ahead(self)

    def next(self) -> dict[str, Tensor]:
        """
        Return the indices of the next step, of shape (C, n) for a plate that takes a part of its
        data, (N,) for one that takes all.
        """
        chains = [dict(minibatches.next()) for minibatches in self._minibatches]
        stacked = {
            name: torch.stack([indices[name] for indices in chains]) for name in self.partial
        }
        return {**chains[0], **stacked}

    def cover(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches as :meth:`Minibatches.cover` does, the same for all chains."""
        first, chains = self._minibatches[0], len(self._minibatches)
        for batch in first.cover():
            expanded = {name: batch[name].expand(chains, -1) for name in first.partial}
            yield {**batch, **expanded}

    def state(self) -> dict[str, Any]:
        """Return the states of all chains."""
        return {"chains": [minibatches.state() for minibatches in self._minibatches]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`."""
        for minibatches, chain in zip(self._minibatches, state["chains"], strict=True):
            minibatches.load(chain)


class StepData:
    """
    The batch of every step: the model's arguments, and the indices of its subsampled plates.
    ``fixed`` are the arguments of all steps, None with a loader.
    """

    def __init__(
        self, arguments: ArgumentSource, minibatches: Minibatches | ChainMinibatches
    ) -> None:
        self.arguments = arguments
        self.minibatches = minibatches
        is_fixed = arguments.sizes is None  # read once: `sizes` may fetch a batch
        # None with a loader, which gives batches only.
        self.fixed = arguments.peek() if is_fixed else None
        self.cover = minibatches.cover if is_fixed else None

    def next(self) -> Batch:
        """Return the batch of the next step."""
        if self.fixed is not None:
            return Batch(self.fixed, self.minibatches.next())
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
