# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
Which data a step sees: indices for the model's subsampled plates.

Pyro's own plate shuffles all N indices at every step. Here a permutation is drawn once an epoch and
cut into batches of exactly n; the N mod n indices left over are dropped and have the same chance
as all others in the next epoch. Or every batch is n independent draws with replacement. Both make
the gradient (2) unbiased; a permutation has the smaller variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_aeb.data.ranks import ALONE, Ranks
from pyro_aeb.errors import ModelError
from pyro_aeb.validation import choice

Order = Literal["permutation", "replacement"]

ORDERS = ("every datum at most once an epoch", "independent draws")


class Minibatches:
    """
    Indices of every plate for every step.

    :param plates: plate name to (size N, subsample size n). A plate with n = N gets all indices in
        order, at no cost a step.
    :param str order: ``"permutation"`` or ``"replacement"``.
    :param torch.device device: of the indices.
    :param torch.Generator generator: source of randomness, None for torch's own.
    :param Ranks ranks: processes with the same generator, which share out every minibatch of n
        times as many data as there are ranks; n of them are this rank's.
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
        self._starts: dict[str, int] = {}
        self._indices = {
            name: torch.arange(size, device=device)
            for name, (size, batch) in plates.items()
            if batch >= size
        }

    @property
    def partial(self) -> frozenset[str]:
        """The plates that take a part of their data."""
        return frozenset(self._plates)

    def first(self) -> dict[str, Tensor]:
        """The first data of every plate, to try the model on; draws no random number."""
        first = dict(self._indices)
        for name, (_, batch) in self._plates.items():
            first[name] = torch.arange(batch, device=self._device)
        return first

    def next(self) -> dict[str, Tensor]:
        """The indices of the next step, plate name to tensor of shape (n,)."""
        for name, (size, batch) in self._plates.items():
            together = batch * self._ranks.world
            if self._order == "replacement":
                indices = torch.randint(
                    size, (together,), generator=self._generator, device=self._device
                )
            else:
                indices = self._next_of_permutation(name, size, together)
            self._indices[name] = indices[batch * self._ranks.rank :][:batch]
        return self._indices

    def _next_of_permutation(self, name: str, size: int, batch: int) -> Tensor:
        start = self._starts.get(name, size)
        if start + batch > size:
            start = 0
            self._epochs[name] = torch.randperm(
                size, generator=self._generator, device=self._device
            )
        self._starts[name] = start + batch
        return self._epochs[name][start : start + batch]

    def cover(self) -> Iterator[dict[str, Tensor]]:
        """
        Batches that hold every datum equally often, in order: the mean of their gradients is that
        of the whole data set. N / n of them, or lcm(N, n) / n where n does not divide N. Draws no
        random number.

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
        """The permutations under way, and where they stand."""
        return {"epochs": dict(self._epochs), "starts": dict(self._starts)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from another's :meth:`state`; the generator is restored by its owner."""
        self._epochs = {n: epoch.to(self._device) for n, epoch in state["epochs"].items()}
        self._starts = dict(state["starts"])


class ChainMinibatches:
    """
    Indices of every plate for every step of several chains, each with minibatches of its own.

    :param minibatches: one for every chain.
    """

    def __init__(self, minibatches: Sequence[Minibatches]) -> None:
        self._minibatches = tuple(minibatches)

    def next(self) -> dict[str, Tensor]:
        """
        The indices of the next step. Those of a plate that takes a part of its data have shape
        (C, n), those of a plate that takes all of them (N,).
        """
        first, *others = (dict(minibatches.next()) for minibatches in self._minibatches)
        partial = self._minibatches[0].partial
        return {
            name: torch.stack([own, *(other[name] for other in others)]) if name in partial else own
            for name, own in first.items()
        }

    def cover(self) -> Iterator[dict[str, Tensor]]:
        """As of one chain, with the same data for all."""
        first, chains = self._minibatches[0], len(self._minibatches)
        for batch in first.cover():
            yield {
                name: own.expand(chains, -1) if name in first.partial else own
                for name, own in batch.items()
            }

    def state(self) -> dict[str, Any]:
        """Every chain's."""
        return {"chains": [minibatches.state() for minibatches in self._minibatches]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from another's :meth:`state`."""
        for minibatches, own in zip(self._minibatches, state["chains"], strict=True):
            minibatches.load(own)
