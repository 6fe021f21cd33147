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

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Order = Literal["permutation", "replacement"]


class Minibatches:
    """
    Indices of every plate for every step.

    :param plates: plate name to (size N, subsample size n). A plate with n = N gets all indices in
        order, at no cost a step.
    :param str order: ``"permutation"`` or ``"replacement"``.
    :param torch.device device: of the indices.
    :param torch.Generator generator: source of randomness, None for torch's own.
    :raises ValueError: if ``order`` is neither.
    """

    def __init__(
        self,
        plates: Mapping[str, tuple[int, int]],
        order: Order,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> None:
        check_order(order)
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

    def first(self) -> dict[str, Tensor]:
        """The first data of every plate, to try the model on; draws no random number."""
        return {
            **self._indices,
            **{
                n: torch.arange(batch, device=self._device)
                for n, (_, batch) in self._plates.items()
            },
        }

    def next(self) -> dict[str, Tensor]:
        """The indices of the next step, plate name to tensor of shape (n,)."""
        for name, (size, batch) in self._plates.items():
            if self._order == "replacement":
                self._indices[name] = torch.randint(
                    size, (batch,), generator=self._generator, device=self._device
                )
            else:
                self._indices[name] = self._next_of_permutation(name, size, batch)
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


def check_order(order: str) -> None:
    """
    :raises ValueError: if ``order`` is not the name of an order.
    """
    if order not in ("permutation", "replacement"):
        raise ValueError(
            f"minibatches is {order!r}, expected 'permutation' (every datum at most once an epoch) "
            "or 'replacement' (independent draws)"
        )
