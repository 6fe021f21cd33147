# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""Data for one pass, batch by batch: the batches of a DataLoader, or one batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pyro_aeb.data.arguments import Arguments, move_to_device, named_numbers, unpack
from pyro_aeb.data.iterables import (
    FindFailure,
    are_batches,
    as_iterable,
    holds_batches,
    to_tensors,
)
from pyro_aeb.data.loaders import sampler_of

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Batches:
    """
    The model's arguments, batch by batch. A loader's batches are unpacked as in ``mcmc.run``.

    :param args: one DataLoader or iterable of batches, or the positional arguments of the only
        batch.
    :param str name: the caller's name for the data, for error messages.
    :param find_failure: runs the model, to tell an iterable of batches from an argument; by default
        an iterable is one.
    :raises TypeError: if a DataLoader is one of several arguments.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        name: str,
        find_failure: FindFailure = lambda _: None,
    ) -> None:
        self._args = args
        self._kwargs = dict(kwargs)
        self._name = name
        self._fingerprints: list[Tensor] = []
        self._loader: Any = None
        if len(args) == 1 and isinstance(args[0], DataLoader):
            # A copy with its own iterator: persistent workers serve one iterator at a time, and
            # a run may be using the same loader.
            self._loader = copy.copy(args[0])
            self._loader._iterator = None
        elif are_batches(args, kwargs, find_failure):
            self._loader = as_iterable(args[0])
        values = (*args, *kwargs.values())
        if self._loader is None and any(isinstance(value, DataLoader) for value in values):
            raise TypeError(
                f"{name} has a DataLoader among {len(values)} arguments, expected it to be the "
                "only positional one: the model gets the loader's batches, not the loader"
            )

    def __len__(self) -> int:
        """Return the number of batches, 0 if the loader does not know it."""
        if self._loader is None:
            return 1
        try:
            return len(self._loader)
        except TypeError:  # an iterable dataset without a length
            return 0

    def fingerprint(self) -> Tensor:
        """
        Return numbers that depend on the data of the last pass over a loader and on their order,
        shape (batches,).
        """
        return torch.stack(self._fingerprints) if self._fingerprints else torch.zeros(0)

    @property
    def shuffles(self) -> bool:
        """Whether the order is random, as far as the loader's sampler shows."""
        if self._loader is None:
            return False
        return isinstance(sampler_of(self._loader), _RANDOM)

    def iterate(self, device: torch.device, limit: int | None = None) -> Iterator[Arguments]:
        """
        Yield the batches, on a device.

        :param int limit: the largest number of batches, None for all.
        :raises ValueError: if there is none.
        """
        self._fingerprints = []
        if self._loader is None:
            yield move_to_device(Arguments(self._args, self._kwargs), device)
            return
        for batch in islice(self._loader, limit):
            if not isinstance(self._loader, DataLoader):
                batch = to_tensors(batch)
            arguments = move_to_device(unpack(batch, self._kwargs), device)
            self._fingerprints.append(_fingerprint(arguments))
            yield arguments
        if not self._fingerprints:
            kind = type(self._loader).__name__
            raise ValueError(
                f"{self._name} is a {kind} that gave no batch, expected at least one; its dataset "
                "is empty, smaller than one batch with drop_last=True, or read to its end"
            )


def _fingerprint(arguments: Arguments) -> Tensor:
    """Return the sum of all numbers in a batch, each datum weighted by its place."""
    total = torch.zeros((), dtype=torch.float64)
    for _, tensor in named_numbers(arguments):
        if tensor.dim():
            rows = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor[:, None]
            sums = rows.nansum(1, dtype=torch.float64)  # missing data are NaN
            place = torch.arange(1, len(sums) + 1, dtype=torch.float64, device=sums.device)
            total = total.to(sums.device) + torch.dot(sums, place)
    return total


def as_batches(data: Any, name: str, find_failure: FindFailure) -> Batches:
    """
    Return :class:`Batches` of an option's value.

    :param data: a DataLoader or another iterable of batches, as ``mcmc.run`` takes; the model's
        arguments as a tuple or mapping, or the only one.
    :param find_failure: runs the model, to tell batches from arguments.
    :raises ModelError: if they cannot be told.
    """
    if hasattr(data, "iterate"):
        return cast(Batches, data)
    if isinstance(data, Mapping):
        return Batches((), data, name)
    if not isinstance(data, (tuple, list)):
        return Batches((data,), {}, name, find_failure)
    if not holds_batches(data, find_failure):
        return Batches(tuple(data), {}, name, find_failure)
    batches = Batches((), {}, name)
    batches._loader = data
    return batches


def in_order(batches: Batches) -> Batches:
    """
    Let a loader that torch shuffles give every datum once, in the order of its data set. A loader
    with a sampler of another kind stays as it is.
    """
    loader: Any = batches._loader
    sampler = getattr(loader, "sampler", None)
    if type(getattr(loader, "batch_sampler", None)) is not BatchSampler:
        return batches
    if type(sampler) in (RandomSampler, SequentialSampler, WeightedRandomSampler):
        batches._loader = DataLoader(
            loader.dataset,
            loader.batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
    return batches
