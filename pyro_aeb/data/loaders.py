# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The model's arguments at every step: always the same, or the next batch of a
:class:`torch.utils.data.DataLoader`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from pyro_aeb.data.arguments import Arguments, leading_lengths, move_to_device, stack, unpack
from pyro_aeb.errors import ModelError


class ArgumentSource(ABC):
    """
    The model's arguments at every step. The methods of this base class suit a source that holds
    nothing open and has no position.
    """

    per_chain = False
    """Whether tensors returned by :meth:`next` have a leading axis of chains."""

    @property
    def sizes(self) -> frozenset[int] | None:
        """Candidates for the size of the data's plate, empty if unknown; None without a loader."""
        return None

    given: Arguments
    """The arguments of ``mcmc.run``."""

    @abstractmethod
    def peek(self) -> Arguments:
        """Return the arguments of the next step without taking them."""

    @abstractmethod
    def next(self) -> Arguments:
        """Return the arguments of the next step, and advance."""

    def move_to(self, device: torch.device) -> None:  # noqa: B027
        """Move tensors of all further batches to a device."""

    def state(self) -> dict[str, Any]:
        """Return the position, as tensors and plain values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore a position returned by :meth:`state` of another source of the same arguments."""

    def suspend(self) -> None:  # noqa: B027
        """Stop a loader's workers until the next batch is needed; the position is kept."""

    def close(self) -> None:  # noqa: B027
        """Release resources; a later :meth:`peek` or :meth:`next` acquires them again."""


class FixedArguments(ArgumentSource):
    """The same arguments at every step."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.given = Arguments(args, kwargs)

    def peek(self) -> Arguments:
        return self.given

    next = peek


class LoaderArguments(ArgumentSource):
    """
    The batches of a DataLoader, epoch after epoch. A tuple or list becomes the model's positional
    arguments, a mapping its keyword arguments, anything else its only argument.

    With a seed, the loader's shuffling, and everything else that draws from torch's global
    generator in this process or seeds the workers, has a random stream of its own.

    :param kwargs: further arguments of every call of the model.
    :param seed: of the loader's random numbers; None for torch's global generator.
    :param int rank: among the processes that share a chain's data, each with a seed of its own.
    """

    def __init__(
        self, loader: DataLoader, kwargs: Mapping[str, Any], seed: int | None, rank: int = 0
    ) -> None:
        self.given = Arguments((loader,), kwargs)
        self._loader: Any = loader
        self._rank = rank
        self._kwargs = dict(kwargs)
        self._rng_state = None if seed is None else torch.Generator().manual_seed(seed).get_state()
        self._iterator: Iterator[Any] | None = None
        self._peeked: Arguments | None = None
        self._device: torch.device | None = None
        self._epochs = 0
        self._epoch = _EpochStart(loader)
        self._fetched = 0  # batches of the current epoch
        self._suspended: Mapping[str, Any] | None = None  # state to resume from

    @property
    def _kind(self) -> str:
        """Name of the source of batches, for error messages."""
        return "DataLoader"

    @property
    def sizes(self) -> frozenset[int]:
        loader = self._loader
        batch = loader.batch_size
        if batch is None and loader.batch_sampler is None:
            return frozenset()  # an item is a batch, of an unknown number of data
        sampler = sampler_of(loader)
        if batch is not None and max(leading_lengths(self.peek()), default=0) > batch:
            return frozenset()  # an item is several data
        lengths = (length(loader.dataset), length(sampler))
        return frozenset(size for size in lengths if size is not None)

    def check_not_persistent(self) -> None:
        """Raise a ModelError if the loader's workers outlive an epoch."""
        if self._loader.persistent_workers:
            raise ModelError(
                "the DataLoader has persistent_workers=True, and such workers serve one chain at a "
                "time; chains that step together need persistent_workers=False, or use "
                'chain_method="sequential"'
            )

    def warn_about_batches(self) -> None:
        """Warn if some data count for more than others."""
        warn_about_sampler(self._loader)
        self._warn_about_short_batches()

    def _warn_about_short_batches(self) -> None:
        """Warn if the same data are the short last batch of every epoch."""
        loader, batch = self._loader, self._loader.batch_size
        if not isinstance(loader.sampler, SequentialSampler) or loader.drop_last or not batch:
            return
        if (last := len(loader.sampler) % batch) and len(loader.sampler) > batch:
            warnings.warn(
                f"the DataLoader does not shuffle, and the last {last} data are a short batch in "
                f"every epoch, scaled by N/{last} where the others are by N/{batch}: these data "
                "count for more than all others; use shuffle=True, or drop_last=True",
                stacklevel=7,
            )

    def move_to(self, device: torch.device) -> None:
        self._device = device
        if self._peeked is not None:
            self._peeked = move_to_device(self._peeked, device)

    def peek(self) -> Arguments:
        if self._suspended is not None:
            state, self._suspended = self._suspended, None
            self.load(state)
        if self._peeked is None:
            self._peeked = self._unpack(self._fetch())
        return self._peeked

    def next(self) -> Arguments:
        arguments, self._peeked = self.peek(), None
        return arguments

    def state(self) -> dict[str, Any]:
        """
        Return the position in the current epoch: the random state at its start, and the number of
        batches fetched.
        """
        if self._suspended is not None:
            return dict(self._suspended)
        return {
            "epochs": self._epochs,
            "fetched": self._fetched,
            "waiting": self._peeked is not None,
            "epoch": self._epoch.state,
            "random": self._rng_state,
            "rank": self._rank,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """
        Start the saved epoch again, and skip the batches that were fetched.

        :raises ModelError: if there are fewer batches, or the loader fails.
        """
        self.close()
        self._suspended = None
        state = self._with_own_seed(state)
        self._epochs, self._fetched = state["epochs"], 0
        before = torch.get_rng_state()
        try:
            if state["fetched"]:
                self._epoch.restore(state["epoch"])
                self._epoch.set_number(self._epochs)
                self._iterator = iter(self._loader)
            for _ in range(state["fetched"]):
                batch = self._skip()
                if batch is None:
                    raise ModelError(
                        f"the {self._kind} has {self._fetched} batches in an epoch, but the saved "
                        f"run had fetched {state['fetched']}; resume with the same data and batch "
                        "size"
                    )
                self._fetched += 1
            if state["waiting"]:
                self._peeked = self._unpack(batch)
        finally:
            torch.set_rng_state(before)
        self._rng_state = state["random"]

    def _skip(self) -> Any:
        """Return the next batch of an epoch that is read again, None at its end."""
        assert self._iterator is not None
        try:
            return next(self._iterator, None)
        except Exception as error:  # of whatever kind a dataset's failures are
            raise ModelError(
                f"the {self._kind} failed at batch {self._fetched + 1} of the epoch that is read "
                f"again up to the saved position ({type(error).__name__}: {error}); the checkpoint "
                "is unchanged: run again when the data can be read"
            ) from error

    def _with_own_seed(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a state; if another rank saved it for all, with a random state of this rank."""
        if state.get("rank", 0) == self._rank or state["random"] is None:
            return state
        first = torch.Generator()
        first.set_state(state["random"])
        seed = int(torch.randint(2**62, (), generator=first)) + self._rank
        random = torch.Generator().manual_seed(seed).get_state()
        return {**state, "random": random, "epoch": [random, *state["epoch"][1:]]}

    def suspend(self) -> None:
        if self._loader.num_workers and self._iterator is not None:
            self._suspended = self.state()
            self.close()

    def close(self) -> None:
        """End the current epoch, and with it the loader's workers unless they are persistent."""
        self._iterator = None
        self._peeked = None
        self._fetched = 0

    def _unpack(self, batch: Any) -> Arguments:
        self._check_names(batch)
        arguments = unpack(batch, self._kwargs)
        if leading_lengths(unpack(batch, {})) == {0}:
            raise ModelError(
                f"batch {self._fetched} of epoch {self._epochs + 1} of the {self._kind} has no "
                "data, expected at least one datum in every batch; leave empty batches out of the "
                "dataset or batch sampler"
            )
        return arguments if self._device is None else move_to_device(arguments, self._device)

    def _fetch(self) -> Any:
        if self._rng_state is None:
            return self._next_batch()
        before = torch.get_rng_state()
        torch.set_rng_state(self._rng_state)
        try:
            return self._next_batch()
        finally:
            self._rng_state = torch.get_rng_state()
            torch.set_rng_state(before)

    def _next_batch(self) -> Any:
        if self._iterator is not None:
            try:
                return self._next_of_epoch(self._iterator)
            except StopIteration:
                self._epochs += 1
        self._epoch.save()
        self._epoch.set_number(self._epochs)
        self._fetched = 0
        self._iterator = iter(self._loader)
        try:
            return self._next_of_epoch(self._iterator)
        except StopIteration:
            self._iterator = None
        if self._epochs:
            raise ModelError(
                f"the {self._kind} gave no batch in epoch {self._epochs + 1}, expected data that "
                "can be read again in every epoch, as a map-style dataset can; a generator is read "
                "once. The draws finished before are in kernel.recover()"
            )
        raise ModelError(
            f"the {self._kind} gives no batch: its dataset is empty, or smaller than one batch "
            "with drop_last=True"
        )

    def _next_of_epoch(self, iterator: Iterator[Any]) -> Any:
        batch = next(iterator)
        self._fetched += 1
        return batch

    def _check_names(self, batch: Any) -> None:
        names = batch.keys() if isinstance(batch, Mapping) else set()
        if common := sorted(names & self._kwargs.keys()):
            raise ModelError(
                f"the {self._kind}'s batches and mcmc.run(...) both give the arguments {common}, "
                "expected each from one of them"
            )


class _EpochStart:
    """
    The random states at the start of an epoch: of torch's global generator, and of the generators
    of the loader and its sampler, if they have any.
    """

    def __init__(self, loader: Any) -> None:
        sampler, batch_sampler = sampler_of(loader), getattr(loader, "batch_sampler", None)
        generators = (getattr(part, "generator", None) for part in (loader, sampler))
        self._generators = [g for g in generators if isinstance(g, torch.Generator)]
        samplers: tuple[Any, ...] = (sampler, batch_sampler)
        self._numbered = [sampler for sampler in samplers if hasattr(sampler, "set_epoch")]
        self.state: list[Tensor] = []

    def save(self) -> None:
        self.state = [torch.get_rng_state(), *(g.get_state() for g in self._generators)]

    def set_number(self, epoch: int) -> None:
        """Pass the number of the epoch to samplers that use it, such as DistributedSampler."""
        for sampler in self._numbered:
            sampler.set_epoch(epoch)

    def restore(self, state: Sequence[Tensor]) -> None:
        self.state = list(state)
        torch.set_rng_state(self.state[0])
        for generator, generator_state in zip(self._generators, self.state[1:], strict=True):
            generator.set_state(generator_state)


class ChainArguments(ArgumentSource):
    """
    The next batches of several chains, each with an order of its own; their tensors are stacked,
    with a leading axis of chains.

    :raises ModelError: if the loader's workers are persistent.
    """

    per_chain = True

    def __init__(self, sources: Sequence[LoaderArguments]) -> None:
        self._sources = tuple(sources)
        sources[0].check_not_persistent()

    @property
    def sizes(self) -> frozenset[int] | None:
        return self._sources[0].sizes

    def peek(self) -> Arguments:
        """Return the first chain's next arguments, without the axis of chains."""
        return self._sources[0].peek()

    def next(self) -> Arguments:
        arguments: list[Arguments] = [source.next() for source in self._sources]
        try:
            stacked: Arguments = stack(*arguments)
            return stacked
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the chains' batches cannot be stacked ({error}); chains that step together need "
                "batches of tensors of equal shapes. Use a loader with drop_last=True and without "
                'padding by batch, or chain_method="sequential"'
            ) from error

    def move_to(self, device: torch.device) -> None:
        for source in self._sources:
            source.move_to(device)

    def state(self) -> dict[str, Any]:
        return {"chains": [source.state() for source in self._sources]}

    def load(self, state: Mapping[str, Any]) -> None:
        for source, chain in zip(self._sources, state["chains"], strict=True):
            source.load(chain)

    def suspend(self) -> None:
        for source in self._sources:
            source.suspend()

    def close(self) -> None:
        for source in self._sources:
            source.close()


def length(data: Any) -> int | None:
    """Return the length of a dataset or sampler, None if it has none."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def sampler_of(loader: Any) -> Any:
    """Return the sampler of a loader, None if it has none."""
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    return getattr(loader, "sampler", None) if inner is None else inner


def warn_about_sampler(loader: DataLoader) -> None:
    """Warn if a loader's sampler draws some data more often than others."""
    if chances := _chances(loader):
        low, high = chances
        warnings.warn(
            f"the DataLoader's sampler draws some data more often than others, {high / low:.3g} "
            "times as often: every draw counts as N/n data, so the posterior is of data of which "
            "datum i counts N p_i times, p_i its share of the sampler's draws. If that is meant, "
            "write it into the model, pyro.poutine.scale(scale=w) with a weight for each datum of "
            "the batch, and draw evenly; else undo it by weights 1 / (N p_i)",
            stacklevel=7,
        )


def _chances(loader: DataLoader) -> tuple[float, float] | None:
    """Return the smallest and largest weight or count of a datum, where they differ."""
    sampler, batches = sampler_of(loader), loader.batch_sampler
    weights = getattr(sampler, "weights", None)
    if isinstance(batches, (list, tuple)):
        sampler = [i for batch in batches for i in batch]
    if isinstance(sampler, (list, tuple, Tensor)) and len(sampler):
        weights = torch.unique(torch.as_tensor(sampler), return_counts=True)[1]
    elif weights is None or len(weights) == 0:
        return None
    elif not getattr(sampler, "replacement", True) and len(sampler) == len(weights):
        return None  # each datum once an epoch
    numbers = torch.as_tensor(weights, dtype=torch.float64)
    low, high = float(numbers.min()), float(numbers.max())
    return (low, high) if high > low * (1.0 + 1e-6) else None
