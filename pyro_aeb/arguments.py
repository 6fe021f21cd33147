# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
What the model is called with at every step: always the same arguments, or the next batch of a
:class:`torch.utils.data.DataLoader`.

:func:`open_arguments` decides which from the arguments of ``mcmc.run``. Both sources have
``peek()``, the arguments of the step to come; ``next()``, which takes them; ``size``, the number of
data behind the batches where it is known; and ``close()``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sized
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from pyro_aeb.errors import ModelError


class Arguments(NamedTuple):
    """
    The arguments of one call of the model.

    :param tuple args: positional.
    :param kwargs: by keyword.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Batch(NamedTuple):
    """
    All that a step's data are.

    :param tuple args: the model's positional arguments.
    :param kwargs: its keyword arguments.
    :param indices: of the plates that subsample, by plate name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    indices: Mapping[str, Tensor]


class Source(Protocol):
    """Where the arguments of every step come from."""

    @property
    def sizes(self) -> frozenset[int]:
        """What the plate of the data may have as its size; empty where that is not known."""
        ...

    @property
    def from_loader(self) -> bool:
        """Whether the arguments change from step to step."""
        ...

    def peek(self) -> Arguments:
        """The arguments of the step to come, which stay to be taken."""
        ...

    def next(self) -> Arguments:
        """The arguments of the next step."""
        ...

    def move_to(self, device: torch.device) -> None:
        """Has tensors of batches moved to a device from now on."""
        ...

    def close(self) -> None:
        """Lets go of what it holds open; it may be opened again by asking for more."""
        ...


def open_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int | None) -> Source:
    """
    :param args: positional arguments of ``mcmc.run``; a DataLoader stands alone among them.
    :param kwargs: its keyword arguments, which go to the model at every step.
    :param seed: of a loader's shuffling and random transforms, None for torch's global generator.
    :raises ModelError: if a DataLoader is not the only positional argument.
    """
    loaders = [i for i, value in enumerate(args) if isinstance(value, DataLoader)]
    named = [name for name, value in kwargs.items() if isinstance(value, DataLoader)]
    if not loaders and not named:
        return FixedArguments(args, kwargs)
    if named or len(args) > 1:
        where = f"argument {named[0]!r}" if named else f"one of {len(args)} positional arguments"
        raise ModelError(
            f"a DataLoader is {where}, expected it to be the only positional one: "
            "mcmc.run(loader, name=value). The model gets the loader's batches, not the loader"
        )
    source = LoaderArguments(args[0], kwargs, seed)
    source.warn_of_short_batches()
    return source


class FixedArguments:
    """
    The same arguments at every step.

    :param tuple args: positional.
    :param kwargs: by keyword.
    """

    sizes: frozenset[int] = frozenset()
    from_loader = False

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._arguments = Arguments(args, kwargs)

    def peek(self) -> Arguments:
        return self._arguments

    def next(self) -> Arguments:
        return self._arguments

    def move_to(self, device: torch.device) -> None:
        pass

    def close(self) -> None:
        pass


class LoaderArguments:
    """
    The batches of a DataLoader, epoch after epoch. A tuple or list becomes the model's positional
    arguments, a mapping its keyword arguments, anything else its only argument.

    With a seed, the loader's shuffling and whatever draws from torch's global generator in the
    loading process (or seeds the workers) follow a stream of random numbers of their own.

    :param DataLoader loader: the batches.
    :param kwargs: arguments that every call of the model gets as well.
    :param seed: None for torch's global generator.
    """

    from_loader = True

    def __init__(self, loader: DataLoader, kwargs: Mapping[str, Any], seed: int | None) -> None:
        self._loader = loader
        self._kwargs = dict(kwargs)
        self._random = None if seed is None else torch.Generator().manual_seed(seed).get_state()
        self._iterator: Iterator[Any] | None = None
        self._waiting: Arguments | None = None
        self._device: torch.device | None = None
        self._epochs = 0

    @property
    def sizes(self) -> frozenset[int]:
        loader = self._loader
        batch = loader.batch_size
        if batch is None and loader.batch_sampler is None:
            return frozenset()  # an item is a batch, of who knows how many data
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        args, kwargs = self.peek()
        if batch is not None and max(leading_lengths(args, kwargs), default=0) > batch:
            return frozenset()  # an item is several data
        return frozenset(
            len(part)
            for part in (loader.dataset, sampler)
            if isinstance(part, Sized) and _has_length(part)
        )

    def warn_of_short_batches(self) -> None:
        """
        :warns UserWarning: if the same data are the short last batch of every epoch.
        """
        loader, batch = self._loader, self._loader.batch_size
        if not isinstance(loader.sampler, SequentialSampler) or loader.drop_last or not batch:
            return
        if (last := len(loader.sampler) % batch) and len(loader.sampler) > batch:
            warnings.warn(
                f"the DataLoader does not shuffle, and the last {last} data are a short batch in "
                f"every epoch, scaled by N/{last} where the others are by N/{batch}: these data "
                "count for more than all others; use shuffle=True, or drop_last=True",
                stacklevel=6,
            )

    def move_to(self, device: torch.device) -> None:
        self._device = device
        if self._waiting is not None:
            self._waiting = moved(self._waiting, device)

    def peek(self) -> Arguments:
        if self._waiting is None:
            batch = self._fetch()
            self._check_names(batch)
            arguments = unpacked(batch, self._kwargs)
            self._waiting = arguments if self._device is None else moved(arguments, self._device)
        return self._waiting

    def next(self) -> Arguments:
        arguments, self._waiting = self.peek(), None
        return arguments

    def close(self) -> None:
        """Ends the epoch under way, and with it the loader's workers unless they are persistent."""
        self._iterator = None
        self._waiting = None

    def _fetch(self) -> Any:
        if self._random is None:
            return self._next_batch()
        before = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            return self._next_batch()
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(before)

    def _next_batch(self) -> Any:
        if self._iterator is not None:
            try:
                return next(self._iterator)
            except StopIteration:
                self._epochs += 1
        self._iterator = iter(self._loader)
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = None
        if self._epochs:
            raise ModelError(
                f"the DataLoader gave no batch in epoch {self._epochs + 1}, expected one that "
                "starts anew in every epoch, as a map-style dataset does; a generator that has "
                "been read stays empty. The draws finished before are in kernel.recover()"
            )
        raise ModelError(
            "the DataLoader gives no batch: its dataset is empty, or smaller than one batch with "
            "drop_last=True"
        )

    def _check_names(self, batch: Any) -> None:
        names = batch.keys() if isinstance(batch, Mapping) else set()
        if twice := sorted(names & self._kwargs.keys()):
            raise ModelError(
                f"the DataLoader's batches and mcmc.run(...) both give the arguments {twice}, "
                "expected each from one of them"
            )


def unpacked(batch: Any, kwargs: Mapping[str, Any]) -> Arguments:
    """
    A DataLoader's batch as arguments: a tuple or list positional ones, a mapping keyword arguments,
    anything else the only one.

    :param batch: what the loader gave.
    :param kwargs: further keyword arguments.
    """
    if isinstance(batch, Mapping):
        return Arguments((), {**batch, **kwargs})
    args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    return Arguments(args, kwargs)


def moved(arguments: Arguments, device: torch.device) -> Arguments:
    """The arguments with all tensors in them on a device, moved without waiting."""
    return Arguments(_to(arguments.args, device), _to(arguments.kwargs, device))


def tensors_of(batch: Arguments | Batch) -> Iterator[tuple[str, Tensor]]:
    """All tensors in a batch, with names that say where they are."""
    for name, value in (*enumerate(batch.args), *batch.kwargs.items()):
        yield from _tensors(repr(name), value)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}[{key!r}]", item)
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _tensors(f"{name}[{i}]", item)


def leading_lengths(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[int]:
    """The lengths of the first axes of the tensors in a batch."""
    return {len(t) for _, t in tensors_of(Batch(args, kwargs, {})) if t.dim()}


def _to(value: Any, device: torch.device) -> Any:
    """
    Tensors inside tuples, lists and mappings, and objects that can move themselves, moved without
    waiting for tensors.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if callable(getattr(value, "to", None)):  # a PackedSequence, a batch of graphs
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _to(item, device) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_to(item, device) for item in value)
    return value


def _has_length(part: Sized) -> bool:
    try:
        len(part)
    except (TypeError, NotImplementedError):
        return False
    return True
