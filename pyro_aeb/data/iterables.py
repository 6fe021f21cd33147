# Copyright Contributors to the pyro_aeb project.
# SPDX-License-Identifier: Apache-2.0

"""
The source of the model's arguments, by the arguments of ``mcmc.run``: the same at every step, the
batches of a DataLoader, or those of another iterable, a list or a loader of another library.

Whether an iterable is the model's own argument or holds batches is not said by its type. A model
that runs on it gets it as it is. A generator function is called for every epoch.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pyro_aeb.data.arguments import Arguments, leading_lengths, map_leaves, unpack
from pyro_aeb.data.contents import is_plain
from pyro_aeb.data.loaders import (
    ArgumentSource,
    ChainArguments,
    FixedArguments,
    LoaderArguments,
    length,
)
from pyro_aeb.errors import ModelError, first_line

FindFailure = Callable[[Arguments], Exception | None]
"""Runs the model on arguments; returns the exception that it raises, None where it runs."""


def open_arguments(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seeds: Sequence[int | None],
    rank: int = 0,
    find_failure: FindFailure = lambda _: None,
) -> ArgumentSource:
    """
    Return the source of the model's arguments.

    :param args: positional arguments of ``mcmc.run``, or one DataLoader or iterable of batches.
    :param kwargs: its keyword arguments, passed to the model at every step.
    :param seeds: of a loader's shuffling and random transforms, one for every chain that steps
        along; None for torch's global generator.
    :param int rank: among the processes that share a chain's data.
    :param find_failure: runs the model, to tell an iterable of batches from an argument.
    :raises ModelError: if a DataLoader is not the only positional argument, or an iterable holds no
        batches.
    """
    named = [name for name, value in kwargs.items() if isinstance(value, DataLoader)]
    if not named and not any(isinstance(value, DataLoader) for value in args):
        if not are_batches(args, kwargs, find_failure):
            return FixedArguments(args, kwargs)
        kind: type[LoaderArguments] = IterableArguments
    else:
        kind = LoaderArguments
    if named or len(args) > 1:
        where = f"argument {named[0]!r}" if named else f"one of {len(args)} positional arguments"
        raise ModelError(
            f"a DataLoader is {where}, expected it to be the only positional one: "
            "mcmc.run(loader, name=value). The model gets the loader's batches, not the loader"
        )
    sources = [kind(args[0], kwargs, seed, rank) for seed in seeds]
    sources[0].warn_about_batches()
    return sources[0] if len(sources) == 1 else ChainArguments(sources)


def are_batches(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], find_failure: FindFailure
) -> bool:
    """
    Whether the only positional argument is an iterable of batches, on which the model cannot run.

    :raises ModelError: if it can be read once only, gives single data, or holds what the model
        cannot run on either.
    """
    if len(args) != 1 or not _may_hold_batches(args[0]):
        return False
    failure = find_failure(Arguments(args, kwargs))
    if failure is None:
        return False
    value = as_iterable(args[0])
    kind = type(value).__name__
    if isinstance(value, Dataset):
        raise ModelError(
            f"the argument is a {kind}, a dataset, which the model cannot run on "
            f"({first_line(failure)}); pass DataLoader(dataset, batch_size=..., shuffle=True), or "
            "DataLoader(dataset, batch_size=None) if its items are batches"
        )
    if iter(value) is value and not hasattr(value, "reset"):
        raise ModelError(
            f"the argument is a {kind}, which gives its batches once, and they are needed again in "
            "every epoch; pass a list of them, list(batches), the generator function itself, or an "
            "object whose __iter__ starts anew, such as a DataLoader"
        )
    if isinstance(value, (list, tuple)):
        again = find_failure(to_tensors(unpack(value[0], kwargs)))
        if again is not None:
            raise ModelError(
                f"the argument is a {kind}: the model fails on it ({first_line(failure)}), and on "
                f"its first item, taken for a batch ({first_line(again)})"
            ) from again
    return True


class GeneratorFunction:
    """The batches of a generator function, which is called anew for every pass over them."""

    def __init__(self, function: Callable[[], Iterator[Any]]) -> None:
        self._function = function

    def __iter__(self) -> Iterator[Any]:
        return self._function()


def as_iterable(value: Any) -> Any:
    """Return an iterable of batches, a generator function as an object with ``__iter__``."""
    return GeneratorFunction(value) if inspect.isgeneratorfunction(value) else value


def holds_batches(values: Sequence[Any], find_failure: FindFailure) -> bool:
    """
    Whether a tuple or list holds batches, in the place of the model's arguments. A tuple on which
    the model runs holds arguments.

    :raises ModelError: if the model runs on a list either way, or on nested values on neither.
    """
    if not _may_hold_batches(values):
        return False
    failure = find_failure(Arguments(tuple(values), {}))
    if failure is None and isinstance(values, tuple):
        return False
    kind = type(values).__name__
    ends = [find_failure(to_tensors(unpack(values[i], {}))) for i in (0, -1)]
    bad = next((end for end in ends if end is not None), None)
    if failure is None and bad is None and len(values) > 1:
        raise ModelError(
            f"the data are a {kind} of {len(values)}, which may be the model's arguments or "
            "batches, for the model runs on both: give arguments as a tuple, (X, y), and batches "
            "as a list of tuples, [(X1, y1), (X2, y2)]"
        )
    nested = isinstance(values[0], (tuple, list, Mapping))
    if failure is not None and bad is not None and nested:
        raise ModelError(
            f"the data are a {kind} of {len(values)}: the model fails on them as its arguments "
            f"({first_line(failure)}), and on one of them taken for a batch ({first_line(bad)})"
        ) from bad
    return failure is not None and bad is None


class IterableArguments(LoaderArguments):
    """The batches of an iterable, epoch after epoch, in its own order. Arrays become tensors."""

    def __init__(
        self, loader: Any, kwargs: Mapping[str, Any], seed: int | None, rank: int = 0
    ) -> None:
        super().__init__(as_iterable(loader), kwargs, seed, rank)
        self.given = Arguments((loader,), kwargs)

    @property
    def _kind(self) -> str:
        return f"{type(self._loader).__name__} of batches"

    @cached_property
    def sizes(self) -> frozenset[int]:  # type: ignore[override]
        if (counts := self._counts()) is not None:
            return frozenset({sum(counts)})
        # All data in one batch, or a number that only the model's plate knows.
        return frozenset(leading_lengths(self.peek()) if length(self._loader) == 1 else ())

    def _counts(self) -> list[int] | None:
        """Return the number of data in each batch of a list, None where they are unknown."""
        if not isinstance(self._loader, Sequence):
            return None
        lengths = [leading_lengths(to_tensors(unpack(batch, {}))) for batch in self._loader]
        if not all(len(found) == 1 for found in lengths):
            return None
        return [count for found in lengths for count in found]

    def check_not_persistent(self) -> None:
        """Chains that step together read the iterable side by side."""

    def warn_about_batches(self) -> None:
        """Warn if the batches of a list have different sizes."""
        counts = self._counts() or [0]
        if min(counts) < max(counts):
            warnings.warn(
                f"the batches have {min(counts)} to {max(counts)} data, and each is scaled to all "
                f"{sum(counts)}: data in a small batch count for more than others; make batches of "
                "one size",
                stacklevel=6,
            )

    def suspend(self) -> None:
        """An iterable has no workers that are known."""

    def _unpack(self, batch: Any) -> Arguments:
        return super()._unpack(to_tensors(batch))


def _may_hold_batches(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        single = hasattr(value, "_fields") or not value or is_plain(value)
        return not single and isinstance(value[0], (tuple, list, Mapping, torch.Tensor, np.ndarray))
    others = (torch.Tensor, np.ndarray, Mapping, str, bytes, torch.nn.Module)
    is_table = hasattr(value, "__array__") or hasattr(value, "columns")
    if inspect.isgeneratorfunction(value):
        return True
    return isinstance(value, (Iterable, Dataset)) and not isinstance(value, others) and not is_table


def to_tensors(value: Any) -> Any:
    """Make tensors of the arrays of numbers in a batch, as torch's DataLoader does."""

    def convert(leaf: Any) -> Any:
        is_numbers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "bif"
        return torch.from_numpy(np.ascontiguousarray(leaf)) if is_numbers else leaf

    return map_leaves(convert, value)
